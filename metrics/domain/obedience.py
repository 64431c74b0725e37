"""Obedience: the share of generated scenes that show what their caption asks for, read by a trained network.

A scene has cells, each with at most one object of a class, a colour and a size. The reader is trained on
scenes whose cells are known. Its weights are a pure function of pictures, cells and recipe (one thread, a
separate random stream), cached under a hash of all three.

The kinds judge one attribute each; the tasks of GenEval, which judge complete captions, are in geneval.py:

    object     every class that the caption names is shown
    colour     every colour that it names is shown
    count      the number of objects is the one that it states
    position   every group is in the cells where the caption puts it
    binding    every class is shown in its colour; only for two groups that differ in class and colour

Only captions that state the attribute count. An empty position is not stated, and one group binds nothing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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
STEPS, LEARNING_RATE = 1500, 3e-3
EMPTY = -1
"""The class, colour and size of a cell without an object."""


class Attributes(NamedTuple):
    """The contents of cells, integers (N, cells); `EMPTY` for cells without an object."""

    kind: np.ndarray
    """The object's class."""
    colour: np.ndarray
    size: np.ndarray


@dataclass(frozen=True)
class Wanted:
    """A group of equal objects in a caption."""

    kind: int
    colour: int
    size: int
    count: int
    cells: frozenset[int]
    """The cells where the caption puts the group; empty if it does not."""


_RECOGNISED = ("colour", "size", "kind")
Scene = Sequence[Wanted]
"""The groups of a caption, one or two."""
Rule = tuple[Callable[[Scene], bool], Callable[[Attributes, Scene], bool]]
"""A function that decides if a caption counts, and one that decides if a shown scene obeys it."""


def obedience(kind: str, shown: Attributes, captions: Sequence[Scene]) -> Value:
    """Return the share of scenes that obey their caption in one attribute, with Wilson's interval.

    Its n is the number of captions that state the attribute. Raises `MetricError` if none does.
    """
    return judged(_KINDS[kind], kind, shown, captions)


def judged(rule: Rule, name: str, shown: Attributes, captions: Sequence[Scene]) -> Value:
    """Return the share of scenes that obey the captions which count; `name` is that of the rule."""
    stated, obeys = rule
    if len(captions) != len(shown.kind):
        raise MetricError(f"got {len(shown.kind)} scenes and {len(captions)} captions; give one for each")
    rows = [i for i, caption in enumerate(captions) if stated(caption)]
    if not rows:
        raise MetricError(f"no caption states the attribute '{name}'")
    right = [obeys(Attributes(*(part[i] for part in shown)), captions[i]) for i in rows]
    return share(np.array(right), len(rows))


def _stated(_: Scene) -> bool:
    return True


def _states_position(caption: Scene) -> bool:
    return all(group.cells for group in caption)


def states_binding(caption: Scene) -> bool:
    """Return whether a caption has two groups that differ in class and colour."""
    if len(caption) < 2:
        return False
    first, second = caption
    return first.kind != second.kind and first.colour != second.colour


def shows_kinds(shown: Attributes, caption: Scene) -> bool:
    """Return whether every class of a caption is shown."""
    return {group.kind for group in caption} <= set(shown.kind.tolist())


def _colour(shown: Attributes, caption: Scene) -> bool:
    return {group.colour for group in caption} <= set(shown.colour.tolist())


def _count(shown: Attributes, caption: Scene) -> bool:
    return int((shown.kind != EMPTY).sum()) == sum(group.count for group in caption)


def _position(shown: Attributes, caption: Scene) -> bool:
    """Return whether the objects of every group are in its cells.

    The objects of two groups are recognised by their colours, else by size or class, whichever differs, so
    that an error in another attribute is not counted as one of position.
    """
    if len(caption) == 1:
        groups = [np.flatnonzero(shown.kind != EMPTY)]
    else:
        first, second = caption
        name = next((n for n in _RECOGNISED if getattr(first, n) != getattr(second, n)), "kind")
        values = getattr(shown, name)
        groups = [np.flatnonzero(values == getattr(group, name)) for group in caption]
    return all(
        len(cells) > 0 and group.cells.issuperset(cells.tolist())
        for cells, group in zip(groups, caption, strict=True)
    )


def binds(shown: Attributes, caption: Scene) -> bool:
    """Return whether every class of a caption is shown in its colour."""
    pairs = set(zip(shown.kind.tolist(), shown.colour.tolist(), strict=True))
    return {(group.kind, group.colour) for group in caption} <= pairs


_KINDS: dict[str, Rule] = {
    "object": (_stated, shows_kinds),
    "colour": (_stated, _colour),
    "count": (_stated, _count),
    "position": (_states_position, _position),
    "binding": (states_binding, binds),
}
KINDS = tuple(_KINDS)
"""The attributes that can be measured."""


class Network(nn.Module):
    """Three convolutions over one cell, a layer of 128 features, and a linear classifier per attribute."""

    def __init__(self, side: int, classes: Sequence[int], random: torch.Generator) -> None:
        super().__init__()
        self.classes = list(classes)
        # Built on the meta device, so that torch's global generator is not advanced.
        with torch.device("meta"):
            self.layers = nn.Sequential(
                nn.Conv2d(3, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.GELU(),
                nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.GroupNorm(8, 64), nn.GELU(),
                nn.Conv2d(64, 64, 3, padding=1, stride=2), nn.GroupNorm(8, 64), nn.GELU(),
                nn.Flatten(), nn.Linear(64 * math.ceil(side / 4) ** 2, 128), nn.GELU(),
                nn.Linear(128, sum(self.classes)),
            )  # fmt: skip
        self.to_empty(device="cpu")
        for module in self.modules():
            initialise(module, random)

    def forward(self, cells: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of each attribute, (B, classes), of cells uint8 (B, 3, side, side).

        The last class of the first attribute is an empty cell.
        """
        return self.layers(cells.float() / 127.5 - 1).split(self.classes, dim=1)


@dataclass(frozen=True)
class SceneReader:
    """A network that reads class, colour and size of the object in every cell."""

    network: Network
    side: int
    """Side of a cell in pixels."""
    accuracy: float
    """Share of the held-out tenth of its training scenes that it reads without any error."""
    sha256: str
    """Checksum of its weights."""

    @torch.no_grad()
    def read(self, pictures: np.ndarray) -> Attributes:
        """Return the attributes of pictures uint8 (N, 3, H, W), cell by cell, row by row."""
        cells = _cells(_checked(pictures), self.side)
        parts = [self.network(part) for part in cells.flatten(0, 1).split(1000)]
        shape = tuple(cells.shape[:2])
        found = [torch.cat(logits).argmax(1).reshape(shape).numpy() for logits in zip(*parts, strict=True)]
        empty = found[0] == self.network.classes[0] - 1
        return Attributes(*(np.where(empty, EMPTY, values) for values in found))


def scene_reader(
    pictures: np.ndarray, cells: Attributes, side: int, *, cache: Path | None = None
) -> SceneReader:
    """Return the reader trained on pictures uint8 (N, 3, H, W) and their known cells of `side` pixels.

    It is read from the cache or trained now, in about 15 s on one core.
    """
    x = _checked(pictures)
    count = (x.shape[2] // side) * (x.shape[3] // side)
    if len(x) < 100 or any(part.shape != (len(x), count) for part in cells):
        raise MetricError(f"a scene reader needs at least 100 pictures with {count} known cells each")
    classes = [int(part.max()) + 1 for part in cells]
    classes[0] += 1

    def train() -> Saved:
        return _train(x, cells, side, classes)

    digest = hashlib.sha256(f"{RECIPE} {tuple(x.shape)} {side} {classes} ".encode() + x.numpy().tobytes())
    for part in cells:
        digest.update(part.astype(np.int64).tobytes())
    key = digest.hexdigest()[:16]
    saved = train() if cache is None else kept(Path(cache) / f"scenes-{key}.safetensors", train)
    network = Network(side, classes, torch.Generator())
    network.load_state_dict(saved.tensors)
    return SceneReader(
        network.requires_grad_(False).eval(), side, float(saved.meta["accuracy"]), saved.sha256
    )


def _train(x: Tensor, cells: Attributes, side: int, classes: Sequence[int]) -> Saved:
    """Train with the sum of the attributes' cross entropies on all but the held-out tenth of the scenes.

    Colour and size of empty cells are in no loss. The optimizer is AdamW with warm-up and a cosine schedule.
    """
    random = torch.Generator().manual_seed(0)
    held_out, train = torch.randperm(len(x), generator=random).tensor_split([math.ceil(HELD_OUT * len(x))])
    inputs = _cells(x, side)
    per_scene = inputs.shape[1]
    of_cells = (train[:, None] * per_scene + torch.arange(per_scene)).flatten()
    inputs = inputs.flatten(0, 1)
    targets = [torch.from_numpy(part.astype(np.int64)).flatten() for part in cells]
    targets[0] = torch.where(targets[0] == EMPTY, classes[0] - 1, targets[0])
    network = Network(side, classes, random)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0)
    with one_thread(), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        for step, index in zip(range(STEPS), batches(of_cells, random), strict=False):
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * schedule(step / STEPS)
            logits = network(inputs[index])
            losses = [
                F.cross_entropy(found, wanted[index], ignore_index=EMPTY)
                for found, wanted in zip(logits, targets, strict=True)
            ]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
        found = SceneReader(network.requires_grad_(False), side, math.nan, "").read(x[held_out].numpy())
    right = [(a == b[held_out.numpy()]).all(axis=1) for a, b in zip(found, cells, strict=True)]
    return Saved(dict(network.state_dict()), {"accuracy": f"{np.all(right, axis=0).mean():.4f}"})


def _cells(pictures: Tensor, side: int) -> Tensor:
    """Return the cells of pictures (N, C, H, W), row by row, (N, cells, C, side, side)."""
    found = pictures.unfold(2, side, side).unfold(3, side, side)
    return found.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)


def _checked(pictures: np.ndarray) -> Tensor:
    x = np.asarray(pictures)
    if x.ndim != 4 or x.shape[1] != 3 or x.dtype != np.uint8:
        raise MetricError(
            f"expected colour pictures uint8 (N, 3, H, W), but got {x.dtype} of shape {x.shape}"
        )
    return torch.from_numpy(np.ascontiguousarray(x))
