"""The 1,797 handwritten digits that ship with scikit-learn (UCI optical recognition of handwritten digits,
test part)."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from harness.config.spec import DataSpec
from harness.data.dataset import Sample


class Digits:
    """8x8 grey images, ten classes; the 17 grey levels are scaled to 0..255 as uint8."""

    modality = "image"
    reads = ()
    classes = 10
    shape = (1, 8, 8)

    def __init__(self, spec: DataSpec) -> None:
        from sklearn.datasets import load_digits

        # Any: the fields of a Bunch depend on its data set.
        bunch: Any = load_digits()
        self._images = np.round(bunch.images[:, None] * (255 / 16)).astype(np.uint8)
        self._labels = bunch.target.astype(np.int64)
        self.fingerprint = hashlib.sha256(self._images.tobytes() + self._labels.tobytes()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._labels)

    def sample(self, index: int) -> Sample:
        return Sample(self._images[index], int(self._labels[index]))

    def key(self, index: int) -> bytes:
        return self._images[index].tobytes()
