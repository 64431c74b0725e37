"""Obedience of clips: the share of generated videos or sounds that show what their caption states.

A clip shows an object, a number of events and a tempo, for example a digit that bounces twice, fast. A
network reads all three from the video or from the sound alone. It is trained on clips whose facts are known,
and on copies of some in which the first frame stays, which have no event. Its weights are a pure function of
clips, facts and recipe (one thread, a separate random stream), cached under a hash of all three.

Only captions that state the attribute count. If several readers are given, for example one for the video and
one for its sound, a clip obeys if it does for all of them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metrics.extractors.local import HELD_OUT, batches, initialise, one_thread, schedule
from metrics.files.cache import Saved, kept
from metrics.intervals import share
from metrics.value import MetricError, Value

RECIPE = 1
"""Version of the training below; a change that alters weights must increase it, to invalidate the cache."""
STEPS, LEARNING_RATE = 500, 4e-3
UNKNOWN = -1
"""The value of an attribute that is not known, or that a caption does not state."""
STILL = 4
"""Every fourth clip of the training set also has a copy in which the first frame stays."""


@dataclass(frozen=True)
class Facts:
    """Facts that clips show, or that captions state: integers (N,), `UNKNOWN` if they are open."""

    object: np.ndarray
    """The object's class."""
    count: np.ndarray
    """Number of events."""
    tempo: np.ndarray
    """The class of the tempo."""

    def columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the three attributes in order."""
        return self.object, self.count, self.tempo


KINDS = ("object", "count", "tempo")
"""The attributes that can be measured."""


def clip_obedience(kind: str, shown: Sequence[Facts], stated: Facts) -> Value:
    """Return the share of clips that obey their caption in one attribute, with Wilson's interval.

    `shown` has the facts that each reader finds. The value's n is the number of captions that state the
    attribute. Raises `MetricError` if none does.
    """
    wanted = getattr(stated, kind)
    found = [getattr(facts, kind) for facts in shown]
    if not found or any(len(values) != len(wanted) for values in found):
        lengths = ", ".join(str(len(values)) for values in found) or "no"
        raise MetricError(f"got {lengths} clips and {len(wanted)} captions; give one for each")
    rows = wanted != UNKNOWN
    if not rows.any():
        raise MetricError(f"no caption states the attribute '{kind}'")
    right = np.all([values[rows] == wanted[rows] for values in found], axis=0)
    return share(right, int(rows.sum()))


class Network(nn.Module):
    """Two convolutions over each frame, two over time, and a linear classifier for each attribute."""

    def __init__(self, shape: Sequence[int], classes: Sequence[int], random: torch.Generator) -> None:
        super().__init__()
        self.classes = list(classes)
        frames, channels, height, width = shape
        places = math.ceil(height / 4) * math.ceil(width / 4)
        # Built on the meta device, so that torch's global generator is not advanced.
        with torch.device("meta"):
            self.frame = nn.Sequential(
                nn.Conv2d(channels, 16, 3, padding=1, stride=2), nn.GroupNorm(4, 16), nn.GELU(),
                nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.GroupNorm(4, 32), nn.GELU(),
                nn.Flatten(), nn.Linear(32 * places, 64), nn.GELU(),
            )  # fmt: skip
            self.time = nn.Sequential(
                nn.Conv2d(64, 64, (3, 1), padding=(1, 0)), nn.GELU(),
                nn.Conv2d(64, 64, (3, 1), padding=(1, 0)), nn.GELU(),
                nn.Flatten(), nn.Linear(64 * frames, 96), nn.GELU(),
                nn.Linear(96, sum(self.classes)),
            )  # fmt: skip
        self.to_empty(device="cpu")
        for module in self.modules():
            initialise(module, random)

    def forward(self, clips: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of each attribute, (B, classes), of clips uint8 (B, T, C, H, W)."""
        frames = self.frame(clips.flatten(0, 1).float() / 127.5 - 1)
        over_time = frames.unflatten(0, clips.shape[:2]).transpose(1, 2)[..., None]
        return self.time(over_time).split(self.classes, dim=1)


@dataclass(frozen=True)
class ClipReader:
    """A network that reads object, count and tempo of a clip."""

    network: Network
    accuracy: float
    """Share of the known facts of the held-out tenth of its clips that it reads without error."""
    sha256: str
    """Checksum of its weights."""

    @torch.no_grad()
    def read(self, clips: np.ndarray) -> Facts:
        """Return the facts of clips uint8 (N, T, C, H, W)."""
        parts = [self.network(part) for part in _checked(clips).split(500)]
        return Facts(*(torch.cat(logits).argmax(1).numpy() for logits in zip(*parts, strict=True)))


def clip_reader(clips: np.ndarray, facts: Facts, *, cache: Path | None = None) -> ClipReader:
    """Return the reader trained on clips uint8 (N, T, C, H, W) with known facts.

    It is read from the cache or trained now, in about 15 s on one core.
    """
    x = _checked(clips)
    if len(x) < 100 or any(values.shape != (len(x),) for values in facts.columns()):
        raise MetricError(f"a clip reader needs at least 100 clips, and facts for each, but got {len(x)}")
    classes = [max(int(values.max()) + 1, 1) for values in facts.columns()]

    def train() -> Saved:
        return _train(x, facts, classes)

    digest = hashlib.sha256(f"{RECIPE} {tuple(x.shape)} {classes} ".encode() + x.numpy().tobytes())
    for values in facts.columns():
        digest.update(values.astype(np.int64).tobytes())
    key = digest.hexdigest()[:16]
    saved = train() if cache is None else kept(Path(cache) / f"clips-{key}.safetensors", train)
    network = Network(x.shape[1:], classes, torch.Generator())
    network.load_state_dict(saved.tensors)
    return ClipReader(network.requires_grad_(False).eval(), float(saved.meta["accuracy"]), saved.sha256)


def _train(x: Tensor, facts: Facts, classes: Sequence[int]) -> Saved:
    """Train with the sum of the attributes' cross entropies on all but the held-out tenth of the clips.

    Unknown facts are in no loss. The optimizer is AdamW with warm-up and a cosine schedule.
    """
    random = torch.Generator().manual_seed(0)
    held_out, train = torch.randperm(len(x), generator=random).tensor_split([math.ceil(HELD_OUT * len(x))])
    targets = [torch.from_numpy(values.astype(np.int64)) for values in facts.columns()]
    still = train[::STILL]
    inputs = torch.cat([x[train], x[still][:, :1].expand_as(x[still])])
    wanted = [
        torch.cat([values[train], torch.full((len(still),), fixed)])
        for values, fixed in zip(targets, (UNKNOWN, 0, UNKNOWN), strict=True)
    ]
    network = Network(x.shape[1:], classes, random)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0)
    with one_thread(), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        for step, index in zip(range(STEPS), batches(torch.arange(len(inputs)), random), strict=False):
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * schedule(step / STEPS)
            loss = _loss(network(inputs[index]), [values[index] for values in wanted])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found = ClipReader(network.requires_grad_(False), math.nan, "").read(x[held_out].numpy())
    known = np.stack([values[held_out.numpy()] for values in facts.columns()])
    right = (np.stack(found.columns()) == known)[known != UNKNOWN]
    return Saved(dict(network.state_dict()), {"accuracy": f"{right.mean():.4f}"})


def _loss(logits: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Return the sum over attributes of the mean cross entropy of the known facts."""
    # A sum over a batch without a known fact is 0; a mean would be nan.
    sums = [
        F.cross_entropy(found, values, ignore_index=UNKNOWN, reduction="sum")
        / (values != UNKNOWN).sum().clamp(min=1)
        for found, values in zip(logits, wanted, strict=True)
    ]
    return torch.stack(sums).sum()


def _checked(clips: np.ndarray) -> Tensor:
    x = np.asarray(clips)
    if x.ndim != 5 or x.dtype != np.uint8 or 0 in x.shape:
        raise MetricError(f"expected clips uint8 (N, T, C, H, W), but got {x.dtype} of shape {x.shape}")
    return torch.from_numpy(np.ascontiguousarray(x))
