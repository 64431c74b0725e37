"""The digits, against scikit-learn's own reader."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from harness.data.generated import digits
from tests.harness.data.pictures import opened


@pytest.mark.parametrize("file", [digits.FILE, "no/such/file"])
def test_digits_are_those_of_scikit_learn(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "FILE", file)
    for ours, theirs in zip(digits.read_digits(), load_digits(return_X_y=True), strict=True):
        assert ours.dtype.kind in "fi" and np.array_equal(ours, theirs)


def test_grey_levels_are_scaled_to_bytes() -> None:
    data, (pixels, labels) = opened("digits", ""), load_digits(return_X_y=True)
    samples = [data.sample(index) for index in range(len(data))]
    assert np.array_equal([s.x for s in samples], np.rint(pixels.reshape(-1, 1, 8, 8) * 255 / 16))
    assert [s.label for s in samples] == labels.tolist()


def test_digits_are_read_without_importing_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert len(digits.read_digits()[1]) == 1797
    monkeypatch.setattr(digits, "FILE", "no/such/file")
    with pytest.raises(ImportError):
        digits.read_digits()
