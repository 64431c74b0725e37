"""U-ViT's folder of COCO features: moments as `N.npy`, without labels.

Training multiplies a draw by 0.2301 (U-ViT configs/mscoco_uvit.py). The states of captions are read by
harness/data/disk/caption_features.py, and condition a run with `text.encoder = "stored"`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from harness.data.disk.caption_features import (
    EMPTY,
    CaptionFeatures,
    holds_caption_features,
    open_caption_features,
)
from harness.data.disk.labels import unlabelled
from harness.data.disk.npy import HEADER, LARGEST, Form, checked_latents, parse_npy, read_file
from harness.errors import UserError
from harness.latents.layouts.source import LatentSource, identity_of

SCALE = 0.23010


def is_uvit(root: Path) -> bool:
    """Return whether a path is a folder of U-ViT's features."""
    return root.is_dir() and holds_caption_features(root)


def open_uvit(root: Path, *, labelled: bool) -> LatentSource:
    """Open the moments of a folder; it has no labels."""
    if not root.is_dir():
        raise UserError(f"SOURCE {root} is a file, expected a folder of U-ViT's features")
    features = open_caption_features(root)
    files = [features.latent_file(number) for number in range(len(features))]
    captions = sum(features.captions)
    usable = captions > 0 and features.has_empty
    without = "" if usable else f", and cannot condition a run without {EMPTY}"
    return LatentSource(
        "uvit", root, _Moments(features), [file.name for file in files], unlabelled(len(files)),
        "none: U-ViT's features have no labels", "logvar", len(files),
        identity_of((file.name, file.stat().st_size) for file in files), features.skipped, scale=SCALE,
        captions=features if usable else None,
        notes=(f"captions: {captions}, which stay in {features.folder}{without}",) if captions else (),
    )  # fmt: skip


def uvit_files(root: Path) -> list[Path]:
    """Return the files of latents and of states of a root, with those of the empty caption."""
    features = open_caption_features(root)
    images = range(len(features))
    states = [features.state_file(image, k) for image in images for k in range(features.captions[image])]
    empty = [features.empty_file()] if features.has_empty else []
    return [*map(features.latent_file, images), *states, *empty]


class _Moments:
    """One record per .npy file."""

    copies = 1

    def __init__(self, features: CaptionFeatures) -> None:
        self._features = features
        first = self._array(0, LARGEST, None)
        self._form = Form(first.shape, first.dtype)
        self.shape, self.dtype = self._form

    def read(self, start: int, stop: int) -> np.ndarray:
        limit = self._form.nbytes + HEADER
        return np.stack([self._array(number, limit, self._form) for number in range(start, stop)])[:, None]

    def _array(self, number: int, limit: int, form: Form | None) -> np.ndarray:
        path = self._features.latent_file(number)
        first = str(self._features.latent_file(0))
        return checked_latents(parse_npy(read_file(path, limit), str(path)), form, str(path), first)
