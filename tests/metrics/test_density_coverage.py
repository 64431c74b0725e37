"""Density and coverage: the definition written out, their values for equal distributions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metrics import density_coverage
from tests.support.features import balls, normal, quick, seeds, whole


@quick
@given(seeds, st.integers(1, 4), st.integers(7, 25), st.integers(2, 25), st.integers(1, 5))
def test_density_and_coverage_equal_their_definitions(seed: int, d: int, n: int, m: int, k: int) -> None:
    real, fake = whole(seed, n, d, high=7), whole(seed + 1, m, d, high=7)
    held = balls(real, fake, k, edge=False)
    density, coverage = density_coverage(real, fake, k=k)
    assert float(density) == pytest.approx(held.sum() / (k * m), rel=1e-12)
    assert float(coverage) == pytest.approx(held.any(axis=1).mean(), rel=1e-12)


def test_density_and_coverage_have_their_expected_values_for_equal_distributions() -> None:
    """Naeem et al., equations 10 and 11: density 1; coverage 1 - (N - 1) .. (N - k) / ((2N - 1) .. (2N -
    k))."""
    n, k = 300, 5
    found = [density_coverage(normal(2 * s, n, 4), normal(2 * s + 1, n, 4), k=k) for s in range(30)]
    coverage = 1 - np.prod([(n - i) / (2 * n - i) for i in range(1, k + 1)])
    assert np.mean([f.density.mean for f in found]) == pytest.approx(1, abs=0.03)
    assert np.mean([f.coverage.mean for f in found]) == pytest.approx(coverage, abs=0.01)
    assert (
        sum(f.density.low <= 1 <= f.density.high for f in found) >= 22
    )  # the real side's noise is not in it
