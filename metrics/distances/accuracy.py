"""Class-conditional accuracy: the share of samples that a classifier assigns to the requested class."""

from __future__ import annotations

from typing import Any

import numpy as np

from metrics.arrays import as_features
from metrics.intervals import share
from metrics.value import MetricError, Value


def class_accuracy(logits: Any, labels: Any) -> Value:
    """Return the share of rows of `logits` (N, classes) whose largest entry is that of their label (N,).

    The interval is Wilson's. Ties go to the first entry, as in numpy's argmax. Raises `MetricError` for bad
    logits, and for labels that are not integers, not one per row, or out of range.
    """
    scores = as_features(logits, "logit")
    wanted = np.asarray(labels.detach().cpu() if hasattr(labels, "detach") else labels)
    n, classes = scores.shape
    if wanted.shape != (n,) or wanted.dtype.kind not in "iu":
        raise MetricError(
            f"class_accuracy needs one integer label per sample, but got {n} samples and labels of shape "
            f"{wanted.shape}, {wanted.dtype}"
        )
    wrong = wanted[(wanted < 0) | (wanted >= classes)]
    if len(wrong):
        raise MetricError(f"label {wrong[0]} is out of range: the classifier has classes 0 .. {classes - 1}")
    return share(scores.argmax(axis=1) == wanted, n)
