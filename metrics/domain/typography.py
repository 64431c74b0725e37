"""Typography: the character error rate of generated words, read by Tesseract or by a locally trained reader.

The reader is trained on images of random strings and learns letters, not words, so it cannot guess a
generated word from a vocabulary. Its weights are a pure function of images, texts and recipe (one thread, a
separate random stream). They are cached under a hash of all three.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metrics.extractors.local import HELD_OUT, batches, initialise, one_thread, schedule
from metrics.files.cache import Saved, kept
from metrics.intervals import of_ratio
from metrics.value import MetricError, Value

ALPHABET = "abcdefghijklmnopqrstuvwxyz"
RECIPE = 1
"""Version of the training below; a change that alters weights must increase it, to invalidate the cache."""
STEPS, LEARNING_RATE = 500, 6e-3
SCALE, MARGIN = 6, 40
"""Enlargement factor of images for Tesseract, and the width of their white margin in pixels."""
SECONDS = 300.0
"""Time limit of Tesseract for a set of images."""


def error_rate(read: Sequence[str], wanted: Sequence[str]) -> Value:
    """Return the character error rate: edits from the words read to those wanted, over wanted letters.

    It is 0 for flawless words and can exceed 1. The interval is over words. Raises `MetricError` for lists of
    different lengths and for an empty wanted word.
    """
    if len(read) != len(wanted) or not len(wanted) or not all(wanted):
        raise MetricError(
            f"got {len(read)} words read and {len(wanted)} wanted; give one for each, and no empty one wanted"
        )
    edits = np.array([edit_distance(r, w) for r, w in zip(read, wanted, strict=True)], float)
    return of_ratio(edits, np.array([len(word) for word in wanted], float))


def edit_distance(first: str, second: str) -> int:
    """Return the Levenshtein distance (1966): the fewest insertions, deletions and replacements."""
    line = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        before, line[0] = line[0], i
        for j, b in enumerate(second, 1):
            before, line[j] = line[j], min(line[j] + 1, line[j - 1] + 1, before + (a != b))
    return line[-1]


def tesseract(images: np.ndarray, *, program: str = "tesseract") -> list[str]:
    """Read one word of letters a to z from each grey image uint8 (N, H, W), light on dark, with Tesseract.

    Raises `MetricError` if the program is not installed, fails, or takes longer than SECONDS.
    """
    x = _checked(images)
    found = shutil.which(program)
    if found is None:
        raise MetricError(
            f"'{program}' is not installed; run: apt install tesseract-ocr, or use the locally trained reader"
        )
    with tempfile.TemporaryDirectory() as folder:
        pages = _pages(x, Path(folder))
        command = [found, str(pages), "stdout", "--psm", "7", "-l", "eng"]
        command += ["-c", f"tessedit_char_whitelist={ALPHABET}", "-c", "page_separator=\f"]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                env=os.environ | {"OMP_THREAD_LIMIT": "1"},
            )
        except subprocess.TimeoutExpired as error:
            raise MetricError(f"{program} did not read {len(x)} images within {SECONDS:g} s") from error
    words = ["".join(page.split()) for page in done.stdout.split("\f")]
    if done.returncode or len(words) != len(x):
        last = done.stderr.strip().rpartition("\n")[2]
        raise MetricError(f"{program} read {len(words)} of {len(x)} images: {last or 'no reason given'}")
    return words


def _pages(images: np.ndarray, folder: Path) -> Path:
    """Write the images, enlarged and dark on light, and return the file with their list for Tesseract."""
    from PIL import Image, ImageOps

    names = []
    for number, pixels in enumerate(images):
        page = ImageOps.invert(Image.fromarray(pixels)).resize(
            (SCALE * pixels.shape[1], SCALE * pixels.shape[0]), Image.Resampling.LANCZOS
        )
        names.append(folder / f"{number:06d}.png")
        ImageOps.expand(page, MARGIN, fill=255).save(names[-1], dpi=(300, 300))
    pages = folder / "pages.txt"
    pages.write_text("".join(f"{name}\n" for name in names))
    return pages


@dataclass(frozen=True)
class Reader:
    """A network that reads one line of letters."""

    network: Network
    error: float
    """Character error rate on the held-out tenth of its training images."""
    sha256: str
    """Checksum of its weights."""

    @torch.no_grad()
    def read(self, images: np.ndarray) -> list[str]:
        """Return the word in each grey image uint8 (N, H, W): each column's likeliest letter, without repeats
        and gaps.
        """
        x = torch.from_numpy(np.ascontiguousarray(_checked(images)))
        return [word for part in x.split(500) for word in _spelled(self.network(part).argmax(-1))]


class Network(nn.Module):
    """Three convolutions, the last over the full height, then a letter or a gap for every second column."""

    def __init__(self, height: int, random: torch.Generator) -> None:
        super().__init__()
        # Built on the meta device, so that torch's global generator is not advanced.
        with torch.device("meta"):
            self.layers = nn.Sequential(
                nn.Conv2d(1, 32, 3, padding=1, stride=(2, 1)), nn.GroupNorm(4, 32), nn.GELU(),
                nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.GroupNorm(8, 64), nn.GELU(),
                nn.Conv2d(64, 128, (math.ceil(height / 4), 3), padding=(0, 1)),
                nn.GroupNorm(8, 128), nn.GELU(),
                nn.Conv2d(128, len(ALPHABET) + 1, 1),
            )  # fmt: skip
        self.to_empty(device="cpu")
        for module in self.modules():
            initialise(module, random)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, W / 2, 1 + letters) of images uint8 (B, H, W); class 0 is the gap."""
        return self.layers(images[:, None].float() / 127.5 - 1).squeeze(2).transpose(1, 2)


def reader(images: np.ndarray, texts: Sequence[str], *, cache: Path | None = None) -> Reader:
    """Return the reader trained on images uint8 (N, H, W) of these texts.

    It is read from the cache or trained now, in about 10 s on one core.
    """
    x = _checked(images)
    if len(x) != len(texts) or len(x) < 100 or not all(text and set(text) <= set(ALPHABET) for text in texts):
        raise MetricError(
            "a reader needs at least 100 images, each with a text of letters a to z, but got "
            f"{len(x)} images and {len(texts)} texts"
        )

    def train() -> Saved:
        return _train(torch.from_numpy(np.ascontiguousarray(x)), texts)

    content = f"{RECIPE} {x.shape} {chr(10).join(texts)} ".encode() + x.tobytes()
    key = hashlib.sha256(content).hexdigest()[:16]
    saved = train() if cache is None else kept(Path(cache) / f"reader-{key}.safetensors", train)
    network = Network(x.shape[1], torch.Generator())
    network.load_state_dict(saved.tensors)
    return Reader(network.requires_grad_(False).eval(), float(saved.meta["error"]), saved.sha256)


def _train(x: Tensor, texts: Sequence[str]) -> Saved:
    """Train with the CTC loss (Graves et al. 2006) on all but the held-out tenth, and measure the error on
    that.

    The optimizer is AdamW with warm-up and a cosine schedule.
    """
    random = torch.Generator().manual_seed(0)
    held_out, train = torch.randperm(len(x), generator=random).tensor_split([math.ceil(HELD_OUT * len(x))])
    network = Network(x.shape[1], random)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0)
    with one_thread(), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        for step, index in zip(range(STEPS), batches(train, random), strict=False):
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * schedule(step / STEPS)
            loss = _ctc(network(x[index]), _chosen(texts, index))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        words = Reader(network.requires_grad_(False), math.nan, "").read(x[held_out].numpy())
    error = error_rate(words, _chosen(texts, held_out))
    return Saved(dict(network.state_dict()), {"error": f"{error.mean:.4f}"})


def _chosen(texts: Sequence[str], index: Tensor) -> list[str]:
    return [texts[int(i)] for i in index]


def _ctc(logits: Tensor, texts: list[str]) -> Tensor:
    letters = torch.tensor([1 + ALPHABET.index(letter) for text in texts for letter in text])
    columns = torch.full((len(texts),), logits.shape[1])
    lengths = torch.tensor([len(text) for text in texts])
    return F.ctc_loss(logits.log_softmax(-1).transpose(0, 1), letters, columns, lengths)


def _spelled(classes: Tensor) -> list[str]:
    """Return the words that classes (B, W) spell: repeats are merged, then gaps are removed."""
    words = []
    for row in classes.tolist():
        letters = [b for a, b in zip([0, *row], row, strict=False) if b and b != a]
        words.append("".join(ALPHABET[letter - 1] for letter in letters))
    return words


def _checked(images: np.ndarray) -> np.ndarray:
    """Return grey images uint8 (N, H, W), or raise `MetricError`."""
    x = np.asarray(images)
    if x.ndim != 3 or x.dtype != np.uint8 or 0 in x.shape:
        raise MetricError(f"expected grey images uint8 (N, H, W), but got {x.dtype} of shape {x.shape}")
    return x
