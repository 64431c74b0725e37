"""The Frechet distance: golden values, closed forms, torch-fidelity, invariances, streamed moments."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from metrics import MetricError, Moments, frechet_distance
from metrics.distances.frechet import BLOCK, SMALL, moments_of

quick = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)


def normal(seed: int, n: int, d: int, *, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)) * scale + shift


def rotation(seed: int, d: int, width: int | None = None) -> np.ndarray:
    """Return a (d, width) matrix with orthonormal rows."""
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((width or d, d)))[0].T


def exactly(seed: int, n: int, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Return features with the given sample mean and covariance."""
    x = normal(seed, n, len(mean))
    x -= x.mean(axis=0)
    whitened = np.linalg.solve(np.linalg.cholesky(np.cov(x, rowvar=False).reshape(len(mean), -1)), x.T)
    return mean + (np.linalg.cholesky(covariance) @ whitened).T


@pytest.fixture(scope="module")
def features(golden: Path) -> dict[str, np.ndarray]:
    with np.load(golden / "metrics" / "features.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def reference(golden: Path) -> dict[str, dict[str, float]]:
    return json.loads((golden / "metrics" / "reference.json").read_text())


def test_frechet_distance_equals_golden_values(
    features: dict[str, np.ndarray], reference: dict[str, dict[str, float]]
) -> None:
    exact = reference["exact_float64_singular_values"]
    real, fake = features["real"], features["fake"]
    assert float(frechet_distance(real, fake)) == pytest.approx(exact["fd"], rel=1e-12)
    assert float(frechet_distance(moments_of(real), moments_of(fake))) == pytest.approx(
        exact["fd"], rel=1e-10
    )
    assert float(frechet_distance(moments_of(real), fake)) == pytest.approx(exact["fd"], rel=1e-10)
    short = frechet_distance(features["real_short"], features["fake_short"])
    assert float(short) == pytest.approx(exact["fd_short_N40_d64"], rel=1e-12)
    assert (short.low, short.high, short.n) == (None, None, 40)


def test_frechet_distance_equals_golden_values_of_other_tools(features, reference) -> None:
    value = float(frechet_distance(features["real"], features["fake"]))
    for tool in ("torch_fidelity_0.4.0", "pytorch_fid_0.3.0", "clean_fid_0.1.35", "torchmetrics_1.9.0"):
        assert value == pytest.approx(reference[tool]["fid"], rel=1e-6), tool
    short = float(frechet_distance(features["real_short"], features["fake_short"]))
    assert short == pytest.approx(reference["torch_fidelity_0.4.0"]["fid_short_N40_d64"], rel=1e-6)


CASES = {
    "gaussian": (normal(1, 400, 16), normal(2, 300, 16, scale=1.2, shift=0.3), 1e-9),
    "more than kept": (normal(1, SMALL + 200, 8), normal(2, SMALL + 1, 8, shift=0.1), 1e-9),
    "rank deficient": (normal(1, 200, 5) @ normal(3, 5, 24), normal(2, 200, 7) @ normal(4, 7, 24), 1e-5),
    "N < d": (normal(1, 20, 48), normal(2, 30, 48, shift=0.5), 1e-5),
    "duplicated": (np.repeat(normal(1, 40, 12), 8, axis=0), normal(2, 300, 12), 1e-9),
    "d = 1": (normal(1, 50, 1), normal(2, 60, 1, scale=3), 1e-9),
    "d = 256": (normal(1, 600, 256), normal(2, 700, 256, shift=0.2), 1e-9),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("route", ["features", "moments"])
def test_frechet_distance_agrees_with_torch_fidelity(case: str, route: str) -> None:
    real, fake, tolerance = CASES[case]
    stats = [fid_features_to_statistics(torch.from_numpy(x)) for x in (real, fake)]
    stats = [{"mu": s["mu"], "sigma": s["sigma"].reshape(real.shape[1], -1)} for s in stats]
    theirs = fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    given = (real, fake) if route == "features" else (moments_of(real), moments_of(fake))
    assert float(frechet_distance(*given)) == pytest.approx(theirs, rel=tolerance, abs=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("n", [100, 2500])
def test_frechet_distance_agrees_with_torch_fidelity_at_2048_dimensions(n: int) -> None:
    """With fewer samples than dimensions eigenvalues lose digits that the features keep."""
    real, fake = normal(1, n, 2048), normal(2, n, 2048, scale=1.1, shift=0.05)
    theirs = fid_statistics_to_metric(
        *(fid_features_to_statistics(torch.from_numpy(x)) for x in (real, fake)), verbose=False
    )["frechet_inception_distance"]
    tolerance = 1e-9 if n > 2048 else 1e-5
    for pair in ((real, fake), (moments_of(real), moments_of(fake))):
        assert float(frechet_distance(*pair)) == pytest.approx(theirs, rel=tolerance)


def test_frechet_distance_equals_closed_form_for_diagonal_gaussians() -> None:
    """|m1 - m2|^2 + sum (s1 - s2)^2"""
    mean, s1, s2 = np.array([0.5, -1.0, 2.0]), np.array([1.0, 2.0, 0.1]), np.array([3.0, 0.5, 0.1])
    real = exactly(1, 50, np.zeros(3), np.diag(s1**2))
    fake = exactly(2, 70, mean, np.diag(s2**2))
    expected = mean @ mean + ((s1 - s2) ** 2).sum()
    assert float(frechet_distance(real, fake)) == pytest.approx(expected, rel=1e-12)
    assert float(frechet_distance(moments_of(real), moments_of(fake))) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_equals_closed_form_when_covariances_do_not_commute() -> None:
    """tr M^(1/2) = sqrt(tr M + 2 sqrt det M) for the 2 x 2 matrix M = S1 S2."""
    s1, s2 = np.array([[2.0, 1.2], [1.2, 1.0]]), np.array([[1.0, -0.6], [-0.6, 3.0]])
    product = s1 @ s2
    shared = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    real, fake = exactly(1, 40, np.zeros(2), s1), exactly(2, 60, np.array([0.0, 1.0]), s2)
    expected = 1 + np.trace(s1) + np.trace(s2) - 2 * shared
    assert float(frechet_distance(real, fake)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [12, 40])
def test_features_in_more_dimensions_than_samples_lose_no_digits(n: int) -> None:
    """An isometry into more dimensions than samples changes nothing."""
    real, fake = normal(1, n, 8), normal(2, n, 8, scale=0.7, shift=0.2)
    wide = rotation(3, 8, 500)
    expected = float(frechet_distance(moments_of(real), moments_of(fake)))
    assert float(frechet_distance(real @ wide, fake @ wide)) == pytest.approx(expected, rel=1e-10)
    assert float(frechet_distance(real @ wide, real @ wide)) < 1e-12


@quick
@given(seeds, st.integers(1, 6), st.integers(2, 40), st.integers(2, 40))
def test_frechet_distance_is_symmetric_and_invariant_to_isometries(seed: int, d: int, n: int, m: int) -> None:
    real, fake = normal(seed, n, d), normal(seed + 1, m, d, scale=1.5, shift=0.5)
    value = float(frechet_distance(real, fake))
    same = pytest.approx(value, rel=1e-9, abs=1e-11)
    order = np.random.default_rng(seed).permutation(n)
    turn, move = rotation(seed, d), normal(seed, 1, d, scale=10)
    assert value >= 0
    assert float(frechet_distance(fake, real)) == same
    assert float(frechet_distance(real[order], fake)) == same
    assert float(frechet_distance(real @ turn + move, fake @ turn + move)) == same
    assert float(frechet_distance(3 * real, 3 * fake)) / 9 == same
    assert float(frechet_distance(real, real)) == pytest.approx(0, abs=1e-12)


def test_numpy_and_torch_give_the_same_value() -> None:
    real, fake = normal(1, 30, 4).astype(np.float32), normal(2, 30, 4).astype(np.float32)
    value = frechet_distance(real, fake)
    assert frechet_distance(torch.from_numpy(real).requires_grad_(), torch.from_numpy(fake)) == value
    rough = torch.from_numpy(real).bfloat16()
    assert frechet_distance(rough, fake) == frechet_distance(rough.float().numpy(), fake)


def test_moments_equal_numpy() -> None:
    x = normal(1, 2 * BLOCK + 77, 5, scale=3, shift=2)
    moments = moments_of(x)
    assert moments.n == len(x) and moments.dim == 5
    np.testing.assert_allclose(moments.mean, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(x, rowvar=False), rtol=1e-11)


def test_moments_are_stable_far_from_zero() -> None:
    """Whole numbers plus 2^30 are exact in float64; sums of their squares are not."""
    x = np.random.default_rng(0).integers(-5, 6, (5000, 3)).astype(float)
    np.testing.assert_allclose(
        moments_of(x + 2**30).covariance, np.cov(x, rowvar=False), rtol=1e-9, atol=1e-9
    )


@quick
@given(seeds, st.lists(st.integers(0, 700), min_size=1, max_size=8))
def test_moments_do_not_depend_on_the_batch_size_by_one_bit(seed: int, sizes: list[int]) -> None:
    x = normal(seed, sum(sizes) + 2, 3)
    streamed, start = Moments(), 0
    for size in [*sizes, 2]:
        streamed.add(torch.from_numpy(x[start : start + size]))
        start += size
    for name, array in moments_of(x).to_arrays().items():
        np.testing.assert_array_equal(streamed.to_arrays()[name], array)


@quick
@given(seeds, st.lists(st.integers(0, 1500), min_size=1, max_size=5))
def test_merged_shards_equal_one_pass(seed: int, sizes: list[int]) -> None:
    x = normal(seed, sum(sizes) + 2, 4, shift=5)
    merged = Moments()
    for shard in np.split(x, np.cumsum(sizes)):
        merged.merge(moments_of(shard))
    whole = moments_of(x)
    scale = np.abs(whole.covariance).max()
    assert merged.n == whole.n
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(merged.covariance / scale, whole.covariance / scale, rtol=0, atol=1e-12)


def test_stored_moments_are_restored(tmp_path: Path) -> None:
    moments = moments_of(normal(1, 100, 3))
    np.savez(tmp_path / "moments.npz", **moments.to_arrays())
    with np.load(tmp_path / "moments.npz", allow_pickle=False) as arrays:
        back = Moments.from_arrays(dict(arrays))
    other = moments_of(normal(2, 100, 3))
    assert frechet_distance(back, other) == frechet_distance(moments, other)
    back.add(normal(3, 10, 3))
    assert (moments.n, back.n) == (100, 110)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n": np.asarray(0)}, "do not match"),
        ({"mean": np.zeros(4)}, "do not match"),
        ({"scatter": np.zeros((3, 3), np.float32)}, "do not match"),
        ({"scatter": np.full((3, 3), np.nan)}, "not finite"),
        ({"n": np.asarray(["x"])}, "must have the arrays n, mean, scatter"),
    ],
)
def test_invalid_stored_moments_are_rejected(change: dict[str, np.ndarray], says: str) -> None:
    arrays = moments_of(normal(1, 10, 3)).to_arrays()
    with pytest.raises(MetricError, match=says):
        Moments.from_arrays({**arrays, **change})
    with pytest.raises(MetricError, match="must have the arrays"):
        Moments.from_arrays({"n": arrays["n"]})


BROKEN = normal(1, 10, 3)
BROKEN[7, 1] = np.nan


@pytest.mark.parametrize(
    ("real", "fake", "says"),
    [
        (normal(1, 1, 3), normal(2, 9, 3), "real features have 1 rows; at least 2"),
        (normal(1, 9, 3), normal(2, 1, 3), "fake features have 1 rows; at least 2"),
        (normal(1, 9, 3), normal(2, 9, 4), "3 columns on one side and 4 on the other"),
        (normal(1, 9, 3), BROKEN, r"fake features are not finite in 1 of 10 rows; the first is row 7"),
        (normal(1, 9, 3).ravel(), BROKEN, r"real features have shape \(27,\); expected \(N, d\)"),
        (np.zeros((5, 0)), BROKEN, "no columns"),
        (np.array([["a"], ["b"]]), BROKEN, "expected real numbers"),
        (normal(1, 9, 3).astype(complex), BROKEN, "complex128; expected real numbers"),
        (moments_of(normal(1, 1, 3)), normal(2, 9, 3), "real moments have 1 samples"),
        (Moments(), normal(2, 9, 3), "real moments have 0 samples"),
    ],
)
def test_invalid_features_are_rejected(real, fake, says: str) -> None:
    with pytest.raises(MetricError, match=says):
        frechet_distance(real, fake)


def test_rejected_batches_leave_moments_unchanged() -> None:
    moments = moments_of(normal(1, 10, 3))
    for wrong in (BROKEN, normal(1, 5, 4), normal(1, 5, 3).ravel()):
        with pytest.raises(MetricError):
            moments.add(wrong)
    with pytest.raises(MetricError, match="3 columns on one side and 4"):
        moments.merge(moments_of(normal(1, 5, 4)))
    assert moments.n == 10
    with pytest.raises(MetricError, match="no features have been added"):
        _ = Moments().mean
    with pytest.raises(MetricError, match="at least 2"):
        _ = moments_of(normal(1, 1, 3)).covariance
