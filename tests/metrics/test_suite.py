"""The table of metrics: names, groups and values of the distances; reference statistics in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from metrics import frechet_distance, frechet_infinity, precision_recall
from metrics.distances.frechet import moments_of
from metrics.files.reference_statistics import is_adm, read_adm, read_statistics, save_statistics
from metrics.suite import (
    GROUPS,
    METRICS,
    Metric,
    Side,
    called,
    check_classes,
    check_reserved,
    chosen,
    measure,
    metric_names,
)
from metrics.value import MetricError

RANDOM = np.random.default_rng(0)
REAL = RANDOM.normal(size=(150, 6)).astype(np.float32)
FAKE = (RANDOM.normal(size=(140, 6)) * 1.2 + 0.1).astype(np.float32)


def test_chosen_returns_each_value_once() -> None:
    assert chosen(["prdc", "precision", "fid", "fd"]) == ["precision", "recall", "density", "coverage", "fd"]
    assert set(GROUPS) < set(metric_names())
    with pytest.raises(MetricError, match=r"unknown metric 'prd' .* Did you mean 'prdc'"):
        chosen(["fd", "prd"])
    with pytest.raises(MetricError, match="no metric is named"):
        chosen([])


def test_reserved_names_are_rejected_with_other_networks() -> None:
    assert called("fd", "inception") == "fid" and called("kid", "inception") == "kid"
    assert called("fd", "i3d") == "fvd" and called("recall", "i3d") == "recall:i3d"
    assert called("fd", "inception@0123abcd") == "fd:inception@0123abcd"
    check_reserved(["fid", "sfid", "kid"], "inception")
    for name, network in (("fid", "local"), ("fvd", "inception"), ("sfid", "inception@0123abcd")):
        with pytest.raises(MetricError, match=f"the name '{name}' is reserved for the original weights"):
            check_reserved([name], network)


def test_measure_returns_the_values_of_the_distances() -> None:
    labels = RANDOM.integers(0, 4, 140)
    logits = np.eye(4, dtype=np.float32)[np.where(np.arange(140) < 35, labels, (labels + 1) % 4)]
    real, fake = Side(REAL, REAL, REAL), Side(FAKE, FAKE, FAKE, logits, labels)
    every = [value for metric in METRICS for value in metric.values]
    found = measure(every, real, fake)
    assert list(found) == every
    assert found["accuracy"].mean == pytest.approx(0.25)
    assert found["fd"].mean == found["sfid"].mean == frechet_distance(REAL, FAKE).mean
    precision, recall = precision_recall(REAL, FAKE, rule="torch-fidelity")
    assert found["precision_torch_fidelity"].mean == precision.mean
    assert found["recall_torch_fidelity"].mean == recall.mean
    with pytest.raises(MetricError, match=r"label 6 is out of range: the classifier has classes 0 \.\. 3"):
        measure(["accuracy"], None, Side(logits=logits, labels=labels + 4))


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.values[0])
def test_least_is_the_smallest_number_of_samples_with_a_value(metric: Metric) -> None:
    labels, enough = np.zeros(metric.least, int), FAKE[: metric.least]
    few = Side(enough, enough, enough, enough, labels)
    assert len(metric.compute(Side(REAL, REAL, REAL), few)) == len(metric.values)
    if metric.least > 1:
        with pytest.raises(MetricError):
            metric.compute(Side(REAL, REAL, REAL), Side(*(part[:-1] for part in few)))


def test_fd_infinity_uses_the_moments_of_the_reference() -> None:
    """dgm-eval: mu1 and sigma1 of all real features, subsets only of the generated ones."""
    kept, streamed = Side(REAL, REAL), Side(moments_of(REAL))
    expected = frechet_infinity(moments_of(REAL), FAKE)
    for real in (kept, streamed):
        found = measure(["fd_infinity"], real, Side(FAKE, FAKE))["fd_infinity"]
        assert (found.mean, found.low, found.high) == (expected.mean, expected.low, expected.high)


def test_accuracy_is_rejected_with_inception() -> None:
    with pytest.raises(
        MetricError, match=r"accuracy needs a classifier .*'local'.* the 1,008 outputs of 'inception'"
    ):
        check_classes("accuracy", "inception")
    check_classes("accuracy", "local")
    check_classes("is", "inception")


def test_adm_statistics_give_the_same_distance_as_features(tmp_path: Path) -> None:
    file = tmp_path / "VIRTUAL.npz"
    names = {"mu": REAL.mean(0), "sigma": np.cov(REAL, rowvar=False)}
    np.savez(file, **names, mu_s=names["mu"][:3], sigma_s=names["sigma"][:3, :3])
    found = read_adm(file)
    assert is_adm(file) and found.n is None
    direct = frechet_distance(moments_of(REAL), FAKE).mean
    assert frechet_distance(found.features, FAKE).mean == pytest.approx(direct, rel=1e-6)
    spatial = frechet_distance(REAL[:, :3], FAKE[:, :3]).mean
    assert frechet_distance(found.spatial, FAKE[:, :3]).mean == pytest.approx(spatial, rel=1e-6)


@pytest.mark.parametrize("sigma", [np.ones((6, 5)), np.full((6, 6), np.nan)])
def test_invalid_adm_statistics_are_rejected(tmp_path: Path, sigma: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", mu=np.zeros(6), sigma=sigma)
    with pytest.raises(MetricError, match=r"a\.npz: mu and sigma are not valid statistics"):
        read_adm(tmp_path / "a.npz")


def test_statistics_are_restored_and_damage_is_detected(tmp_path: Path) -> None:
    file, moments = tmp_path / "a.safetensors", moments_of(REAL)
    save_statistics(file, moments, None, {"extractor": "net"})
    found = read_statistics(file)
    assert (found.n, found.meta, found.spatial) == (150, {"extractor": "net"}, None)
    np.testing.assert_array_equal(found.features.covariance, moments.covariance)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(MetricError, match=r"a\.safetensors is missing, truncated or altered"):
        read_statistics(file)
