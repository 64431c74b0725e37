"""KID: torch-fidelity's values and subsets, no bias, an interval that covers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric

from metrics import kernel_distance
from metrics.distances.kid import squared_mmd
from tests.support.features import fresh, normal


def test_kid_golden(features, reference) -> None:
    theirs = reference["torch_fidelity_0.4.0"]["kid"]["kernel_inception_distance_mean"]
    value = kernel_distance(features["real"], features["fake"], subsets=10, subset_size=200)
    assert float(value) == pytest.approx(theirs, rel=1e-6)
    assert value.low < theirs < value.high and value.n == 500
    spread = reference["torch_fidelity_0.4.0"]["kid"][
        "kernel_inception_distance_std"
    ]  # theirs divides by 10, not 9
    expected = 1.959964 * np.sqrt(200 / 300 * 10 / 9) * spread
    assert value.high - value.mean == pytest.approx(expected, rel=1e-5)


def test_kid_golden_of_clean_fid(features, reference) -> None:
    """Its 10 subsets of 200, drawn from numpy's global generator with seed 0, the real side first."""
    random = np.random.RandomState(0)
    found = []
    for _ in range(10):
        x, y = (
            features[name][random.choice(500, 200, replace=False)].astype(np.float64)
            for name in ("real", "fake")
        )
        found.append(squared_mmd(x, y))
    assert np.mean(found) == pytest.approx(reference["clean_fid_0.1.35"]["kid_10x200_npseed0"], rel=1e-5)


@fresh
def test_kid_agrees_with_torch_fidelity(real: np.ndarray, fake: np.ndarray) -> None:
    """The subsets are the same, and torch-fidelity computes in float64 if it is given float64."""
    theirs = kid_features_to_metric(
        torch.from_numpy(fake), torch.from_numpy(real), kid_subsets=6, kid_subset_size=30, verbose=False
    )
    value = kernel_distance(real, fake, subsets=6, subset_size=30)
    expected = theirs["kernel_inception_distance_mean"]
    assert float(value) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    size, n = 30, min(len(real), len(fake))
    spread = theirs["kernel_inception_distance_std"] * np.sqrt(6 / 5)  # theirs divides by 6
    half = 1.96 * np.sqrt(size / (n - size)) * spread
    assert value.high - value.mean == pytest.approx(half, rel=1e-4, abs=1e-8)
    assert value.mean - value.low == pytest.approx(half, rel=1e-4, abs=1e-8)


def test_kid_is_unbiased_and_its_interval_covers() -> None:
    """Equal distributions have a mean of 0 within its error, and intervals cover a known difference."""
    at_null, shifted = [], []
    for seed in range(60):
        x, y, z = (
            normal(3 * seed, 200, 4),
            normal(3 * seed + 1, 200, 4),
            normal(3 * seed + 2, 200, 4, shift=0.5),
        )
        at_null.append(kernel_distance(x, y, subsets=20, subset_size=80, seed=seed))
        shifted.append(kernel_distance(x, z, subsets=20, subset_size=80, seed=seed))
    means = np.array([v.mean for v in at_null])
    assert abs(means.mean()) < 3 * means.std() / np.sqrt(len(means))
    truth = expected_kid(4, 0.5)
    assert np.mean([v.mean for v in shifted]) == pytest.approx(truth, rel=0.1)
    assert sum(v.low <= truth <= v.high for v in shifted) >= 53


def expected_kid(d: int, shift: float) -> float:
    """E k(x, x') + E k(y, y') - 2 E k(x, y) for N(0, I) and N(shift, I): k = (s + 1)^3 with s = x.y / d.

    s has the moments of a product: with x = a + u, y = b + w (u, w standard), x.y = a.b + a.w + b.u + u.w.
    """
    m = shift**2 * d

    def cube(ab: float, aa: float, bb: float) -> float:
        first = ab
        second = ab**2 + aa + bb + d
        third = ab**3 + 3 * ab * (aa + bb + d) + 6 * ab  # the last: E 6 (a.w)(b.u)(u.w) = 6 a.b
        return third / d**3 + 3 * second / d**2 + 3 * first / d + 1

    return cube(0, 0, 0) + cube(m, m, m) - 2 * cube(0, 0, m)
