"""KID, CMMD, precision and recall, density and coverage, inception score, CKNNA, memorisation: golden values, live tools,
definitions written out slowly."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from metrics import (
    MetricError,
    cknna,
    cmmd,
    density_coverage,
    inception_score,
    inception_score_shuffled,
    kernel_distance,
    memorisation,
    precision_recall,
)

quick = settings(max_examples=15, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)


def normal(seed: int, n: int, d: int, *, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)) * scale + shift


def whole(seed: int, n: int, d: int, high: int = 5) -> np.ndarray:
    """Whole numbers: every way to compute their distances is exact, and many of them tie."""
    return np.random.default_rng(seed).integers(0, high, (n, d)).astype(float)


@pytest.fixture(scope="module")
def features(golden: Path) -> dict[str, np.ndarray]:
    with np.load(golden / "metrics" / "features.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def reference(golden: Path) -> dict[str, dict]:
    return json.loads((golden / "metrics" / "reference.json").read_text())


FRESH = {
    "gaussian": (normal(1, 150, 16), normal(2, 120, 16, scale=1.1, shift=0.2)),
    "rank deficient": (normal(1, 150, 3) @ normal(3, 3, 24), normal(2, 120, 4) @ normal(4, 4, 24)),
    "N < d": (normal(1, 40, 64), normal(2, 50, 64, shift=0.3)),
    "duplicated": (np.repeat(whole(1, 30, 6), 4, axis=0), whole(2, 120, 6)),
    "d = 1": (normal(1, 150, 1), normal(2, 120, 1, scale=2)),
    "d = 2048": (normal(1, 90, 2048), normal(2, 80, 2048, shift=0.1)),
}
fresh = pytest.mark.parametrize(("real", "fake"), FRESH.values(), ids=FRESH)


# KID


def test_kid_golden(features, reference) -> None:
    theirs = reference["torch_fidelity_0.4.0"]["kid"]["kernel_inception_distance_mean"]
    value = kernel_distance(features["real"], features["fake"], subsets=10, subset_size=200)
    assert float(value) == pytest.approx(theirs, rel=1e-6)
    assert value.low < theirs < value.high and value.n == 500


@fresh
def test_kid_agrees_with_torch_fidelity(real: np.ndarray, fake: np.ndarray) -> None:
    """In its own subsets, and in its own arithmetic when it is given float64."""
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
    """Equal distributions: the mean of many draws is 0 within its error; a known difference lies in its interval."""
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


# CMMD


def test_cmmd_golden(features, reference) -> None:
    value = cmmd(features["real"], features["fake"])
    assert float(value) == pytest.approx(reference["cmmd_definition"]["value"], rel=1e-9)


@fresh
def test_cmmd_written_out(real: np.ndarray, fake: np.ndarray) -> None:
    x, y = real[:30] + 0.1, fake[:20] + 0.1
    u, v = (z / np.sqrt((z**2).sum(axis=1, keepdims=True)) for z in (x, y))

    def mean_kernel(a: np.ndarray, b: np.ndarray) -> float:
        return np.mean([[np.exp(-((p - q) ** 2).sum() / 200) for q in b] for p in a])

    expected = 1000 * (mean_kernel(u, u) + mean_kernel(v, v) - 2 * mean_kernel(u, v))
    assert float(cmmd(x, y)) == pytest.approx(expected, rel=1e-8, abs=1e-10)


def test_cmmd_interval_covers() -> None:
    """The mean of many draws, less the bias of order 1/N that the value has by definition, lies in most intervals."""
    draws = [cmmd(normal(2 * s, 400, 3, shift=1), normal(2 * s + 1, 400, 3, shift=0.5)) for s in range(60)]
    truth = np.mean([v.mean for v in draws])
    assert sum(v.low <= truth <= v.high for v in draws) >= 53
    assert np.mean([v.high - v.mean for v in draws]) < 3 * np.std([v.mean for v in draws])


# Precision and recall


def test_precision_recall_golden(features, reference) -> None:
    adm = precision_recall(features["real"], features["fake"])
    assert [v.mean for v in adm] == [reference["adm_definition"][name] for name in adm._fields]
    fidelity = precision_recall(features["real"], features["fake"], rule="torch-fidelity")
    theirs = reference["torch_fidelity_0.4.0"]["prc"]
    assert [v.mean for v in fidelity] == pytest.approx([theirs[name] for name in fidelity._fields], abs=1e-7)


@fresh
def test_precision_recall_agrees_with_torch_fidelity(real: np.ndarray, fake: np.ndarray) -> None:
    ours = precision_recall(real, fake, rule="torch-fidelity")
    for save_ram in (False, True):
        theirs = prc_features_to_metric(
            torch.from_numpy(fake).float(),
            torch.from_numpy(real).float(),
            save_cpu_ram=save_ram,
            verbose=False,
        )
        assert [v.mean for v in ours] == pytest.approx([theirs["precision"], theirs["recall"]], abs=1e-7)


def balls(centres: np.ndarray, points: np.ndarray, k: int, *, edge: bool) -> np.ndarray:
    """(len(centres), len(points)) bool: which ball holds which point, by definition, on whole numbers."""
    squared = lambda p, q: int(((p - q) ** 2).sum())  # noqa: E731
    rows = []
    for i, centre in enumerate(centres):
        others = sorted(squared(centre, c) for j, c in enumerate(centres) if j != i)
        rows.append([squared(centre, p) < others[k - 1] + edge for p in points])
    return np.array(rows)


@quick
@given(seeds, st.integers(1, 4), st.integers(5, 25), st.integers(5, 25), st.integers(1, 4))
def test_precision_recall_written_out(seed: int, d: int, n: int, m: int, k: int) -> None:
    """All rules agree where arithmetic is exact; samples on the edge of a ball are inside it."""
    real, fake = whole(seed, n, d), whole(seed + 1, m, d)
    precision = balls(real, fake, k, edge=True).any(axis=0).mean()
    recall = balls(fake, real, k, edge=True).any(axis=0).mean()
    for rule in ("adm", "adm-float16"):
        assert [v.mean for v in precision_recall(real, fake, k=k, rule=rule)] == [precision, recall]


def test_many_blocks_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = normal(1, 50, 4), normal(2, 43, 4)
    before = (
        precision_recall(real, fake),
        density_coverage(real, fake),
        memorisation(real, fake),
        cmmd(real, fake),
    )
    for room in ("neighbours", "manifolds", "mmd"):
        monkeypatch.setattr(f"metrics.{room}.BLOCK", 7)
    after = (
        precision_recall(real, fake),
        density_coverage(real, fake),
        memorisation(real, fake),
        cmmd(real, fake),
    )
    assert before[:3] == after[:3]
    assert float(after[3]) == pytest.approx(float(before[3]), rel=1e-9)


def test_float16_rounds_and_gives_way() -> None:
    """ADM's precision cannot tell 1 from 1.0001; where float16 overflows it falls back to float32."""
    real, fake = np.array([[0.0], [1.0], [2.0]]), np.array([[3.0001], [9.0], [12.0]])
    assert precision_recall(real, fake, k=1).precision == 0
    assert precision_recall(real, fake, k=1, rule="adm-float16").precision == pytest.approx(1 / 3)
    far = (300 * real, 300 * fake)  # squares beyond 65,504
    assert precision_recall(*far, k=1, rule="adm-float16").precision == 0


def test_shares_have_wilsons_interval() -> None:
    """scipy's, as an authority; and at both ends."""
    from scipy.stats import binomtest

    real, fake = normal(1, 80, 3), normal(2, 60, 3, shift=0.7)
    precision, recall = precision_recall(real, fake)
    for value, count in ((precision, 60), (recall, 80)):
        expected = binomtest(round(value * count), count).proportion_ci(method="wilson")
        assert (value.low, value.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    all_in, none_in = precision_recall(real, real).precision, precision_recall(real, real + 100).precision
    assert all_in == all_in.high == 1 > all_in.low > 0.9
    assert none_in == none_in.low == 0 < none_in.high < 0.1


# Density and coverage


@quick
@given(seeds, st.integers(1, 4), st.integers(7, 25), st.integers(2, 25), st.integers(1, 5))
def test_density_coverage_written_out(seed: int, d: int, n: int, m: int, k: int) -> None:
    real, fake = whole(seed, n, d, high=7), whole(seed + 1, m, d, high=7)
    held = balls(real, fake, k, edge=False)
    density, coverage = density_coverage(real, fake, k=k)
    assert float(density) == pytest.approx(held.sum() / (k * m), rel=1e-12)
    assert float(coverage) == pytest.approx(held.any(axis=1).mean(), rel=1e-12)


def test_density_and_coverage_of_equal_distributions() -> None:
    """Naeem et al., equations 10 and 11: density 1; coverage 1 - (N - 1) .. (N - k) / ((2N - 1) .. (2N - k))."""
    n, k = 300, 5
    found = [density_coverage(normal(2 * s, n, 4), normal(2 * s + 1, n, 4), k=k) for s in range(30)]
    coverage = 1 - np.prod([(n - i) / (2 * n - i) for i in range(1, k + 1)])
    assert np.mean([f.density.mean for f in found]) == pytest.approx(1, abs=0.03)
    assert np.mean([f.coverage.mean for f in found]) == pytest.approx(coverage, abs=0.01)
    assert (
        sum(f.density.low <= 1 <= f.density.high for f in found) >= 22
    )  # the real side's noise is not in it


# Memorisation


@quick
@given(seeds, st.integers(1, 4), st.integers(2, 20), st.integers(2, 20))
def test_memorisation_written_out(seed: int, d: int, n: int, m: int) -> None:
    train, fake = normal(seed, n, d), normal(seed + 1, m, d)
    gap = lambda p, q: np.sqrt(((p - q) ** 2).sum())  # noqa: E731
    copies = []
    for sample in fake:
        nearest = min(range(n), key=lambda i: gap(sample, train[i]))
        own = min(gap(train[nearest], train[j]) for j in range(n) if j != nearest)
        copies.append(gap(sample, train[nearest]) <= own)
    assert float(memorisation(train, fake)) == pytest.approx(np.mean(copies), abs=1e-12)


def test_memorisation_sees_what_frechet_cannot() -> None:
    train, held_out = normal(1, 400, 8), normal(2, 300, 8)
    fresh_share = memorisation(train, held_out)
    assert memorisation(train, train[:100]) == 1
    assert memorisation(train, np.vstack([train[:150], held_out[:150]])).low > fresh_share.high
    assert memorisation(train, held_out + 50) == 0
    assert memorisation(np.vstack([train, train]), train[:50]) == 1


# Inception score


def test_inception_score_golden(features, reference) -> None:
    logits, theirs = features["logits_fake"], reference["torch_fidelity_0.4.0"]
    adm = inception_score(logits, split_size=100)
    assert float(adm) == pytest.approx(reference["adm_definition"]["inception_score_split100"], rel=1e-9)
    shuffled, sorted_ = inception_score_shuffled(logits), inception_score_shuffled(logits, shuffle=False)
    assert float(shuffled) == pytest.approx(theirs["isc_shuffled"]["inception_score_mean"], rel=1e-9)
    assert float(sorted_) == pytest.approx(theirs["isc"]["inception_score_mean"], rel=1e-9)
    spread = theirs["isc_shuffled"]["inception_score_std"] / np.sqrt(9)  # theirs divides by 10 splits, not 9
    assert shuffled.high - shuffled.mean == pytest.approx(2.262157 * spread, rel=1e-6)


@fresh
def test_inception_score_agrees_with_torch_fidelity(real: np.ndarray, fake: np.ndarray) -> None:
    for shuffle in (True, False):
        theirs = isc_features_to_metric(torch.from_numpy(fake), splits=7, shuffle=shuffle)
        ours = inception_score_shuffled(fake, splits=7, shuffle=shuffle)
        assert float(ours) == pytest.approx(theirs["inception_score_mean"], rel=1e-9)


def test_inception_score_closed_forms() -> None:
    """No information: 1. Each sample certain, c classes equally often: c. Sorted, each split one class: 1."""
    certain = np.repeat(np.eye(5), 20, axis=0) * 2000
    assert float(inception_score(np.zeros((30, 5)))) == pytest.approx(1)
    assert float(inception_score(certain)) == pytest.approx(5)
    assert float(inception_score(certain, split_size=20)) == pytest.approx(1)
    assert inception_score(certain).low is None  # one split tells nothing of the spread


# CKNNA


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


def test_cknna_knows_a_rotation_from_a_stranger() -> None:
    a, stranger = normal(1, 200, 6), normal(2, 200, 6)
    turned = a @ np.linalg.qr(normal(3, 6, 6))[0] * 4
    assert float(cknna(a, turned)) == pytest.approx(float(cknna(a, a)), rel=1e-9)
    assert float(cknna(a, stranger)) < 0.1 < 0.99 < float(cknna(a, turned))


# What all of them refuse

OK = normal(1, 12, 3)
NAN = normal(1, 12, 3)
NAN[4, 0] = np.inf


@pytest.mark.parametrize(
    "distance", [kernel_distance, cmmd, precision_recall, density_coverage, memorisation]
)
def test_refused(distance) -> None:
    for real, fake, says in (
        (OK, NAN, "fake features are not finite in 1 of 12 rows, row 4 the first"),
        (NAN, OK, "real features are not finite"),
        (OK[:1], OK, "real features have 1 rows"),
        (OK, OK[:1], "fake features have 1 rows"),
        (OK, OK[:, :2], "3 columns on one side and 2 on the other"),
        (OK.ravel(), OK, r"real features have shape \(36,\)"),
    ):
        with pytest.raises(MetricError, match=says):
            distance(real, fake)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: precision_recall(OK, OK, k=12), r"k = 12 neighbours: expected 1 .. 11 for 12 samples"),
        (lambda: precision_recall(OK, OK, rule="amd"), "unknown rule 'amd'"),
        (lambda: density_coverage(OK, OK, k=0), "k = 0 neighbours"),
        (lambda: kernel_distance(OK, OK, subsets=1), "1 subsets of 1000"),
        (lambda: kernel_distance(OK[:3], OK), "real features have 3 rows; at least 4"),
        (lambda: cmmd(OK, np.vstack([OK, np.zeros(3)])), "fake features have a row of zeros.*row 12"),
        (lambda: inception_score(OK, split_size=0), "split_size = 0"),
        (lambda: inception_score(NAN), "logit features are not finite"),
        (lambda: inception_score_shuffled(OK, splits=13), r"13 splits of 12 samples; expected 1 .. 12"),
        (lambda: cknna(OK, OK[:11]), "given 12 and 11 rows"),
        (lambda: cknna(OK, OK, k=1), "k = 2 or more"),
        (lambda: cknna(OK, OK, k=12), "k = 12 neighbours"),
        (lambda: cknna(OK[:3], OK[:3]), "at least 4"),
        (lambda: cknna(np.ones((4, 3)), OK[:4], k=3), "not defined here"),
    ],
)
def test_refused_by_name(call, says: str) -> None:
    with pytest.raises(MetricError, match=says):
        call()


def test_torch_and_numpy_are_the_same() -> None:
    real, fake = normal(1, 40, 4).astype(np.float32), normal(2, 30, 4).astype(np.float32)
    for distance in (kernel_distance, cmmd, precision_recall, density_coverage, memorisation):
        assert distance(torch.from_numpy(real), torch.from_numpy(fake)) == distance(real, fake)


def test_views_and_read_only_arrays(recwarn: pytest.WarningsRecorder) -> None:
    real, fake = normal(1, 40, 4), normal(2, 30, 4)
    fixed = real.copy()
    fixed.flags.writeable = False
    for distance in (kernel_distance, cmmd, precision_recall, density_coverage, memorisation):
        assert distance(fixed, fake[::-1][::-1]) == distance(real, fake)
    assert (
        density_coverage(real[::-1], np.asfortranarray(fake)).coverage
        == density_coverage(real, fake).coverage
    )
    assert not recwarn.list
