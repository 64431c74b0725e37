"""Precision and recall: golden values, torch-fidelity live, the definition written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_fidelity.metric_prc import prc_features_to_metric

from metrics import precision_recall
from tests.support.features import balls, fresh, normal, quick, seeds, whole


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


@quick
@given(seeds, st.integers(1, 4), st.integers(5, 25), st.integers(5, 25), st.integers(1, 4))
def test_precision_recall_equals_its_definition(seed: int, d: int, n: int, m: int, k: int) -> None:
    """All rules agree where arithmetic is exact; samples on the edge of a ball are inside it."""
    real, fake = whole(seed, n, d), whole(seed + 1, m, d)
    precision = balls(real, fake, k, edge=True).any(axis=0).mean()
    recall = balls(fake, real, k, edge=True).any(axis=0).mean()
    for rule in ("adm", "adm-float16"):
        assert [v.mean for v in precision_recall(real, fake, k=k, rule=rule)] == [precision, recall]


def test_float16_rounds_and_falls_back_to_float32_on_overflow() -> None:
    """float16 does not distinguish 1 from 1.0001."""
    real, fake = np.array([[0.0], [1.0], [2.0]]), np.array([[3.0001], [9.0], [12.0]])
    assert precision_recall(real, fake, k=1).precision.mean == 0
    assert precision_recall(real, fake, k=1, rule="adm-float16").precision.mean == pytest.approx(1 / 3)
    far = (300 * real, 300 * fake)  # squares beyond 65,504
    assert precision_recall(*far, k=1, rule="adm-float16").precision.mean == 0


def test_shares_have_wilsons_interval() -> None:
    """The authority is scipy; shares of 0 and 1 are checked too."""
    from scipy.stats import binomtest

    real, fake = normal(1, 80, 3), normal(2, 60, 3, shift=0.7)
    precision, recall = precision_recall(real, fake)
    for value, count in ((precision, 60), (recall, 80)):
        expected = binomtest(round(value.mean * count), count).proportion_ci(method="wilson")
        assert (value.low, value.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    all_in, none_in = precision_recall(real, real).precision, precision_recall(real, real + 100).precision
    assert all_in.mean == all_in.high == 1 > all_in.low > 0.9
    assert none_in.mean == none_in.low == 0 < none_in.high < 0.1
