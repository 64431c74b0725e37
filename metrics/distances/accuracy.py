"""Class-conditional accuracy: how many samples a classifier takes for what they were asked to be."""

from __future__ import annotations

from typing import Any

import numpy as np

from metrics.arrays import as_features
from metrics.intervals import share
from metrics.value import MetricError, Value


def class_accuracy(logits: Any, labels: Any) -> Value:
    """The share of rows of `logits` (N, classes) whose largest entry is at their label (N,), with Wilson's interval.

    Of equal entries the first counts, as in numpy's argmax. Raises `MetricError` for bad logits, and for labels that are
    no whole numbers, are not one a row, or are out of range.
    """
    scores = as_features(logits, "logit")
    wanted = np.asarray(labels.detach().cpu() if hasattr(labels, "detach") else labels)
    n, classes = scores.shape
    if wanted.shape != (n,) or wanted.dtype.kind not in "iu":
        raise MetricError(
            f"class_accuracy needs one whole number a sample as its label; given {n} samples and labels of shape "
            f"{wanted.shape}, {wanted.dtype}"
        )
    wrong = wanted[(wanted < 0) | (wanted >= classes)]
    if len(wrong):
        raise MetricError(
            f"label {wrong[0]} is out of range: the classifier knows classes 0 .. {classes - 1}"
        )
    return share(scores.argmax(axis=1) == wanted, n)
