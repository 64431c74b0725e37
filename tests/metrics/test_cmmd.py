"""CMMD: the golden value, the definition written out, an interval that covers."""

from __future__ import annotations

import numpy as np
import pytest

from metrics import cmmd
from tests.support.features import fresh, normal


def test_cmmd_golden(features, reference) -> None:
    value = cmmd(features["real"], features["fake"])
    assert float(value) == pytest.approx(reference["cmmd_definition"]["value"], rel=1e-9)


@fresh
def test_cmmd_equals_its_definition(real: np.ndarray, fake: np.ndarray) -> None:
    x, y = real[:30] + 0.1, fake[:20] + 0.1
    u, v = (z / np.sqrt((z**2).sum(axis=1, keepdims=True)) for z in (x, y))

    def mean_kernel(a: np.ndarray, b: np.ndarray) -> float:
        return np.mean([[np.exp(-((p - q) ** 2).sum() / 200) for q in b] for p in a])

    expected = 1000 * (mean_kernel(u, u) + mean_kernel(v, v) - 2 * mean_kernel(u, v))
    assert float(cmmd(x, y)) == pytest.approx(expected, rel=1e-8, abs=1e-10)


def test_cmmd_interval_covers() -> None:
    """The mean over many draws, which includes the bias of order 1/N, is within most intervals."""
    draws = [cmmd(normal(2 * s, 400, 3, shift=1), normal(2 * s + 1, 400, 3, shift=0.5)) for s in range(60)]
    truth = np.mean([v.mean for v in draws])
    assert sum(v.low <= truth <= v.high for v in draws) >= 53
    assert np.mean([v.high - v.mean for v in draws]) < 3 * np.std([v.mean for v in draws])
