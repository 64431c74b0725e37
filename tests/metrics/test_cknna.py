"""CKNNA: golden values, the unbiased estimator written out, rotations and unrelated features."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from metrics import cknna
from tests.support.features import normal


def test_cknna_golden(features, reference) -> None:
    real, fake, theirs = features["real"], features["fake"], reference["cknna_platonic_rep"]
    assert float(cknna(real, fake, k=10)) == pytest.approx(theirs["k10"], rel=1e-9)
    assert float(cknna(real, fake, k=50)) == pytest.approx(theirs["k50"], rel=1e-9)
    assert float(cknna(real, real, k=10)) == pytest.approx(theirs["self_k10"], rel=1e-9)


def test_cknna_of_all_neighbours_is_unbiased_cka() -> None:
    """Unbiased HSIC as the mean over all different i, j, q, r (Song et al. 2012, equation 4)."""
    n = 7
    a, b = normal(1, n, 5), normal(1, n, 5)[:, :3] + normal(2, n, 3, scale=0.3)
    x, y = (unit @ unit.T for unit in (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (a, b)))

    def hsic(x: np.ndarray, y: np.ndarray) -> float:
        tuples = itertools.permutations(range(n), 4)
        return np.mean([x[i, j] * (y[i, j] + y[q, r] - 2 * y[i, q]) for i, j, q, r in tuples])

    expected = hsic(x, y) / (np.sqrt(hsic(x, x) * hsic(y, y)) + 1e-6)
    assert float(cknna(a, b, k=n - 1)) == pytest.approx(expected, rel=1e-9)


def test_cknna_is_invariant_to_rotation_and_low_for_unrelated_features() -> None:
    a, unrelated = normal(1, 200, 6), normal(2, 200, 6)
    turned = a @ np.linalg.qr(normal(3, 6, 6))[0] * 4
    assert float(cknna(a, turned)) == pytest.approx(float(cknna(a, a)), rel=1e-9)
    assert float(cknna(a, unrelated)) < 0.1 < 0.99 < float(cknna(a, turned))
