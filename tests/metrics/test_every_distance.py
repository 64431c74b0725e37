"""Properties of every distance between features: blocks, array types, views and invalid inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

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
from tests.support.features import normal


def test_distance_does_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = normal(1, 50, 4), normal(2, 43, 4)
    before = (
        precision_recall(real, fake),
        density_coverage(real, fake),
        memorisation(real, fake),
        cmmd(real, fake),
    )
    for module in ("neighbours", "precision_recall", "cmmd"):
        monkeypatch.setattr(f"metrics.distances.{module}.BLOCK", 7)
    after = (
        precision_recall(real, fake),
        density_coverage(real, fake),
        memorisation(real, fake),
        cmmd(real, fake),
    )
    assert before[:3] == after[:3]
    assert float(after[3]) == pytest.approx(float(before[3]), rel=1e-9)


OK = normal(1, 12, 3)
NAN = normal(1, 12, 3)
NAN[4, 0] = np.inf


@pytest.mark.parametrize(
    "distance", [kernel_distance, cmmd, precision_recall, density_coverage, memorisation]
)
def test_invalid_features_are_rejected(distance) -> None:
    for real, fake, says in (
        (OK, NAN, "fake features are not finite in 1 of 12 rows; the first is row 4"),
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
        (lambda: precision_recall(OK, OK, k=12), r"k = 12 neighbours; expected 1 .. 11 for 12 samples"),
        (lambda: precision_recall(OK, OK, rule="amd"), "unknown rule 'amd'"),
        (lambda: density_coverage(OK, OK, k=0), "k = 0 neighbours"),
        (
            lambda: kernel_distance(OK, OK, subsets=1),
            "subsets = 1, subset_size = 1000; both must be at least 2",
        ),
        (lambda: kernel_distance(OK[:3], OK), "real features have 3 rows; at least 4"),
        (lambda: cmmd(OK, np.vstack([OK, np.zeros(3)])), "fake features have only zeros in row 12"),
        (lambda: inception_score(OK, split_size=0), "split_size = 0"),
        (lambda: inception_score(NAN), "logit features are not finite"),
        (lambda: inception_score_shuffled(OK, splits=13), r"splits = 13 of 12 samples; expected 1 .. 12"),
        (lambda: cknna(OK, OK[:11]), "but got 12 and 11 rows"),
        (lambda: cknna(OK, OK, k=1), "k = 1; expected 2 or more"),
        (lambda: cknna(OK, OK, k=12), "k = 12 neighbours"),
        (lambda: cknna(OK[:3], OK[:3]), "at least 4"),
        (lambda: cknna(np.ones((4, 3)), OK[:4], k=3), "not defined"),
    ],
)
def test_invalid_arguments_are_rejected(call, says: str) -> None:
    with pytest.raises(MetricError, match=says):
        call()


def test_torch_and_numpy_give_the_same_value() -> None:
    real, fake = normal(1, 40, 4).astype(np.float32), normal(2, 30, 4).astype(np.float32)
    for distance in (kernel_distance, cmmd, precision_recall, density_coverage, memorisation):
        assert distance(torch.from_numpy(real), torch.from_numpy(fake)) == distance(real, fake)


def test_views_and_read_only_arrays_are_accepted_without_warnings(recwarn: pytest.WarningsRecorder) -> None:
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
