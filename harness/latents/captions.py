"""Captions next to latents: their texts, carried along by an encoding, or their states in U-ViT's files.

captions.bin   the texts of all captions, UTF-8, one after the other
captions.npz   ends int64 (captions,) of each text, and upto int64 (samples,), the captions up to each sample
states.npz     upto as above, and digests uint8 (captions + 1, 16) of U-ViT's files, the empty caption last

States stay where they are. A file is compared with its digest when a process reads it for the first time.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.disk.caption_features import CaptionFeatures, parse_states, read_states
from harness.errors import UserError

TEXTS, TEXT_INDEX, STATES = "captions.bin", "captions.npz", "states.npz"
DIGEST = 16
"""Bytes of the hash of a file of states."""
PART = 512
"""Images whose states one part of an import reads: about 0.6 GB for five captions of CLIP ViT-L/14 each."""


def caption_files(captions: Iterable[Sequence[str]]) -> dict[str, bytes]:
    """Return the files of the captions of all samples, by name."""
    texts, upto = [], []
    for of_sample in captions:
        texts += [text.encode() for text in of_sample]
        upto.append(len(texts))
    return {
        TEXTS: b"".join(texts),
        TEXT_INDEX: _npz(ends=np.cumsum([len(t) for t in texts]), upto=np.array(upto)),
    }


class CaptionTexts:
    """The texts of a folder's captions, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        with np.load(folder / TEXT_INDEX, allow_pickle=False) as index:
            self._ends, self._upto = index["ends"].astype(np.int64), index["upto"].astype(np.int64)
        file = folder / TEXTS
        self._content = np.memmap(file, np.uint8, "r") if file.stat().st_size else np.empty(0, np.uint8)

    def __call__(self, index: int) -> tuple[str, ...]:
        """Return the captions of a sample."""
        numbers = range(int(self._upto[index - 1]) if index else 0, int(self._upto[index]))
        starts = (int(self._ends[number - 1]) if number else 0 for number in numbers)
        ends = (int(self._ends[number]) for number in numbers)
        return tuple(self._content[a:b].tobytes().decode() for a, b in zip(starts, ends, strict=True))


def staged_digests(features: CaptionFeatures) -> dict[str, Callable[[], bytes]]:
    """Return the digests of all states but that of the empty caption, by the name of a file for each part.

    A function reads every file of its images. It raises `UserError` for one that is damaged or of another
    shape than the empty caption's.
    """
    starts = range(0, len(features), PART)
    return {
        f"states-{number:05d}.part": partial(
            _digests, features, range(start, min(start + PART, len(features)))
        )
        for number, start in enumerate(starts)
    }


def states_file(features: CaptionFeatures, folder: Path) -> bytes:
    """Return the content of the file with the digests of all states, from the parts in a folder."""
    parts = [(folder / name).read_bytes() for name in staged_digests(features)]
    parts.append(_checked(features.empty_file(), features.empty().shape))
    joined = np.frombuffer(b"".join(parts), np.uint8).reshape(-1, DIGEST)
    return _npz(upto=np.cumsum(features.captions), digests=joined)


def _digests(features: CaptionFeatures, images: range) -> bytes:
    """Return the digests of the states of some images, read by several threads."""
    shape = features.empty().shape
    files = [features.state_file(image, k) for image in images for k in range(features.captions[image])]
    with ThreadPoolExecutor() as pool:
        return b"".join(pool.map(partial(_checked, shape=shape), files))


class CaptionStates:
    """The states of captions in U-ViT's files, as an imported folder has recorded them."""

    # Any: values of a manifest.
    def __init__(self, folder: Path, recorded: dict[str, Any], sha256: str) -> None:
        self.length, self.dim = recorded["shape"]
        self.sha256 = sha256
        """Checksum of all states."""
        with np.load(folder / STATES, allow_pickle=False) as index:
            upto, self._digests = index["upto"].astype(np.int64), index["digests"]
        self.counts = np.diff(upto, prepend=0)
        """Number of captions of each sample, int64 (N,)."""
        self.source = f"states of {recorded['root']}"
        self._first, self._unread = upto - self.counts, np.ones(len(self._digests), bool)
        self._features = CaptionFeatures(Path(recorded["root"]), tuple(self.counts.tolist()))

    def states(self, index: int, caption: int) -> np.ndarray:
        """Return the states of a caption of a sample, float32 (L, D)."""
        return self._read(self._features.state_file(index, caption), int(self._first[index]) + caption)

    def empty(self) -> np.ndarray:
        """Return the states of the empty caption, float32 (L, D)."""
        return self._read(self._features.empty_file(), len(self._digests) - 1)

    def _read(self, path: Path, number: int) -> np.ndarray:
        content = read_states(path)
        if self._unread[number]:
            if _digest(content) != self._digests[number].tobytes():
                raise UserError(f"{path} has other states than when it was imported; import the folder again")
            self._unread[number] = False
        return parse_states(content, path)


def _checked(path: Path, shape: tuple[int, ...]) -> bytes:
    """Return the digest of a file of states of this shape."""
    content = read_states(path)
    if (found := parse_states(content, path).shape) != shape:
        raise UserError(
            f"{path} has states {'x'.join(map(str, found))}, but those of the empty caption are "
            f"{'x'.join(map(str, shape))}; replace it"
        )
    return _digest(content)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:DIGEST]


def _npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()
