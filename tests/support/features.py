"""Features for the tests of distances: random ones of every awkward shape, and a slow count of balls."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

quick = settings(max_examples=15, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)


def normal(seed: int, n: int, d: int, *, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)) * scale + shift


def whole(seed: int, n: int, d: int, high: int = 5) -> np.ndarray:
    """Whole numbers: every way to compute their distances is exact, and many of them tie."""
    return np.random.default_rng(seed).integers(0, high, (n, d)).astype(float)


def balls(centres: np.ndarray, points: np.ndarray, k: int, *, edge: bool) -> np.ndarray:
    """(len(centres), len(points)) bool: which ball holds which point, by definition, on whole numbers."""
    squared = lambda p, q: int(((p - q) ** 2).sum())  # noqa: E731
    rows = []
    for i, centre in enumerate(centres):
        others = sorted(squared(centre, c) for j, c in enumerate(centres) if j != i)
        rows.append([squared(centre, p) < others[k - 1] + edge for p in points])
    return np.array(rows)


FRESH = {
    "gaussian": (normal(1, 150, 16), normal(2, 120, 16, scale=1.1, shift=0.2)),
    "rank deficient": (normal(1, 150, 3) @ normal(3, 3, 24), normal(2, 120, 4) @ normal(4, 4, 24)),
    "N < d": (normal(1, 40, 64), normal(2, 50, 64, shift=0.3)),
    "duplicated": (np.repeat(whole(1, 30, 6), 4, axis=0), whole(2, 120, 6)),
    "d = 1": (normal(1, 150, 1), normal(2, 120, 1, scale=2)),
    "d = 2048": (normal(1, 90, 2048), normal(2, 80, 2048, shift=0.1)),
}
fresh = pytest.mark.parametrize(("real", "fake"), FRESH.values(), ids=FRESH)
