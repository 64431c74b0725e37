"""Class-conditional accuracy against a plain count and scipy's interval."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from metrics import MetricError, class_accuracy

LOGITS = np.random.default_rng(0).standard_normal((50, 7))


def test_accuracy_equals_the_count_of_correct_rows() -> None:
    labels = np.random.default_rng(1).integers(0, 7, 50)
    right = sum(
        max(range(7), key=lambda c: row[c]) == label for row, label in zip(LOGITS, labels, strict=True)
    )
    value = class_accuracy(LOGITS, labels)
    expected = binomtest(right, 50).proportion_ci(method="wilson")
    assert value.mean == right / 50 and value.n == 50
    assert (value.low, value.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert class_accuracy(torch.from_numpy(LOGITS), torch.from_numpy(labels)) == value


def test_accuracy_is_1_for_the_best_class_and_0_for_another() -> None:
    best = LOGITS.argmax(axis=1)
    assert class_accuracy(LOGITS, best).mean == 1
    assert class_accuracy(LOGITS, (best + 1) % 7).mean == 0
    assert class_accuracy(np.zeros((3, 2)), np.array([0, 0, 1])).mean == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("logits", "labels", "says"),
    [
        (LOGITS, np.full(50, 7), r"label 7 is out of range: the classifier has classes 0 .. 6"),
        (LOGITS, np.full(50, -1), "label -1 is out of range"),
        (LOGITS, np.zeros(49, int), r"but got 50 samples and labels of shape \(49,\), int64"),
        (LOGITS, np.zeros(50), r"shape \(50,\), float64"),
        (LOGITS[0], np.zeros(7, int), r"logit features have shape \(7,\)"),
        (np.full((2, 3), np.nan), np.zeros(2, int), "logit features are not finite"),
    ],
)
def test_invalid_logits_and_labels_are_rejected(logits: np.ndarray, labels: np.ndarray, says: str) -> None:
    with pytest.raises(MetricError, match=says):
        class_accuracy(logits, labels)
