"""The inception score: golden values, torch-fidelity live, closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from metrics import inception_score, inception_score_shuffled
from tests.support.features import fresh


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


def test_inception_score_equals_closed_forms() -> None:
    """No information: 1. Each sample certain, c classes equally often: c. Sorted, each split one class: 1."""
    certain = np.repeat(np.eye(5), 20, axis=0) * 2000
    assert float(inception_score(np.zeros((30, 5)))) == pytest.approx(1)
    assert float(inception_score(certain)) == pytest.approx(5)
    assert float(inception_score(certain, split_size=20)) == pytest.approx(1)
    assert inception_score(certain).low is None  # one split has no spread
