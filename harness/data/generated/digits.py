"""The 1,797 handwritten digits that ship with scikit-learn (UCI optical recognition of handwritten digits,
test part)."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from harness.config.data_spec import DataSpec
from harness.data.dataset import Sample

FILE = "datasets/data/digits.csv.gz"
"""The digits in scikit-learn's package."""


class Digits:
    """8x8 grey images, ten classes; the 17 grey levels are scaled to 0..255 as uint8."""

    modality = "image"
    reads = ()
    classes = 10
    shape = (1, 8, 8)

    def __init__(self, spec: DataSpec) -> None:
        pixels, labels = read_digits()
        self._images = np.round(pixels.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
        self._labels = labels.astype(np.int64)
        self.fingerprint = hashlib.sha256(self._images.tobytes() + self._labels.tobytes()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._labels)

    def sample(self, index: int) -> Sample:
        return Sample(self._images[index], int(self._labels[index]))

    def key(self, index: int) -> bytes:
        return self._images[index].tobytes()


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's digits: 64 pixels from 0 to 16 a row, and the labels.

    They are read from its file, because the import of scikit-learn takes a second at the start of every run.
    """
    package = find_spec("sklearn")
    file = Path(package.origin or "").parent / FILE if package else Path(FILE)
    if not file.is_file():
        # A version that keeps its files elsewhere.
        from sklearn.datasets import load_digits

        # Any: scikit-learn has no type for its data sets.
        digits: Any = load_digits()
        return digits.data, digits.target
    table = np.loadtxt(file, delimiter=",")
    return table[:, :-1], table[:, -1]
