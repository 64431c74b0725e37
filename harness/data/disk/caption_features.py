"""U-ViT's folder of COCO features: latents of images, and states of a text encoder for their captions.

N.npy               mean and log-variance of image N (from 0), (8, 32, 32) for 256x256 pixels
N_K.npy             states of caption K of image N, (tokens, width): (77, 768) for CLIP ViT-L/14
empty_context.npy   states of the empty caption, in the folder or in the folder above
Source: baofff/U-ViT datasets.py (`MSCOCOFeatureDataset`), scripts/extract_mscoco_feature.py.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.data.disk.npy import Form, parse_npy, read_file
from harness.errors import UserError
from metrics.files.listing import Skipped

LATENT, CAPTION = re.compile(r"(0|[1-9]\d{0,8})\.npy"), re.compile(r"(0|[1-9]\d{0,8})_(0|[1-9]\d{0,5})\.npy")
EMPTY, TRAIN = "empty_context.npy", "train"
STATES_BYTES = 2**26
"""Bytes of the largest file of states that is read."""
EXPECTED = "U-ViT's feature folder: 0.npy, 1.npy, ..., 0_0.npy, ... and empty_context.npy"


@dataclass(frozen=True)
class CaptionFeatures:
    """The features of a folder: one latent and several captions for each image."""

    folder: Path
    captions: tuple[int, ...]
    """Number of captions of each image."""
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        return len(self.captions)

    def latent_file(self, index: int) -> Path:
        """Return the file of an image's latent."""
        return self.folder / f"{index}.npy"

    def state_file(self, index: int, caption: int) -> Path:
        """Return the file of a caption's states."""
        if not 0 <= caption < self.captions[index]:
            raise IndexError(f"image {index} has {self.captions[index]} captions, not number {caption}")
        return self.folder / f"{index}_{caption}.npy"

    def states(self, index: int, caption: int) -> np.ndarray:
        """Return the states of a caption, float32 (tokens, width). Raises `UserError` if it is damaged."""
        return _states(self.state_file(index, caption))

    def empty(self) -> np.ndarray:
        """Return the states of the empty caption, float32 (tokens, width)."""
        return _states(self.empty_file())

    @property
    def has_empty(self) -> bool:
        """Return whether the states of the empty caption exist."""
        return any((folder / EMPTY).is_file() for folder in (self.folder, self.folder.parent))

    def empty_file(self) -> Path:
        """Return the file of the empty caption's states. Raises `UserError` without one."""
        for folder in (self.folder, self.folder.parent):
            if (folder / EMPTY).is_file():
                return folder / EMPTY
        raise UserError(f"{self.folder} has no {EMPTY}, and neither has the folder above; add it")


def holds_caption_features(root: Path) -> bool:
    """Return whether a folder is one of U-ViT's, or holds one for training."""
    return (_train_folder(root) / "0.npy").is_file()


def open_caption_features(root: Path) -> CaptionFeatures:
    """Open the features of a folder, those of `train` if it has splits.

    Raises `UserError` for gaps in the numbers of images or captions.
    """
    folder = _train_folder(root)
    captions, images, others = _numbers(folder)
    if not images:
        raise UserError(f"{folder} holds no latents; expected {EXPECTED}")
    for number in range(len(images)):
        if number not in images:
            raise UserError(f"{folder} has no {number}.npy, but {len(images)} latents; expected {EXPECTED}")
    for image in captions:
        if image not in images:
            raise UserError(f"{folder} has captions of image {image}, but no {image}.npy; add or remove them")
        if captions[image] != set(range(len(captions[image]))):
            raise UserError(f"{folder}: the captions of image {image} are not numbered from 0; renumber them")
    skipped = (Skipped("other files", len(others), min(others)),) if others else ()
    return CaptionFeatures(folder, tuple(len(captions.get(n, ())) for n in range(len(images))), skipped)


def _train_folder(root: Path) -> Path:
    return root / TRAIN if (root / TRAIN / "0.npy").is_file() else root


def _numbers(folder: Path) -> tuple[dict[int, set[int]], set[int], list[str]]:
    """Return the numbers of captions by image, those of images, and the names of other files."""
    captions: dict[int, set[int]] = {}
    images: set[int] = set()
    others: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for name in (entry.name for entry in entries):
                if match := LATENT.fullmatch(name):
                    images.add(int(match[1]))
                elif match := CAPTION.fullmatch(name):
                    captions.setdefault(int(match[1]), set()).add(int(match[2]))
                elif name != EMPTY:
                    others.append(name)
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from error
    return captions, images, others


def _states(path: Path) -> np.ndarray:
    return parse_states(read_states(path), path)


def read_states(path: Path) -> bytes:
    """Return the content of a file of states. Raises `UserError` if it cannot be read, or is too large."""
    return read_file(path, STATES_BYTES)


def parse_states(content: bytes, path: Path) -> np.ndarray:
    """Return states, float32 (tokens, width), of a file's content. Raises `UserError` if it is damaged."""
    states = parse_npy(content, str(path))
    if states.ndim != 2 or states.dtype.kind != "f" or not states.size:
        raise UserError(f"{path} is {Form(states.shape, states.dtype)}, expected states (tokens, width)")
    if not np.isfinite(states).all():
        raise UserError(f"{path} has values that are not finite; replace it")
    return states.astype(np.float32)
