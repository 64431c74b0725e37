"""The inception score (Salimans et al. 2016): exp of the mean KL divergence between p(y|x) and p(y).

It is averaged over splits and depends on the order of the samples: if they are sorted by class, a split holds
few classes and scores low. ADM does not shuffle and torch-fidelity does, hence two functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from metrics.arrays import as_features
from metrics.intervals import of_replicates
from metrics.value import MetricError, Value


def inception_score(logits: Any, *, split_size: int = 5000) -> Value:
    """Return ADM's inception score: samples in the given order, in splits of `split_size` and a remainder.

    `logits` (N, classes) are those of Inception without the bias of its last layer (guided-diffusion
    evaluations/evaluator.py). The interval is Student's t over splits; a single split has none. Raises
    `MetricError` for bad logits or a split size below 1.
    """
    log_p = _log_softmax(as_features(logits, "logit"))
    if split_size < 1:
        raise MetricError(f"inception_score: split_size = {split_size}; expected 1 or more")
    return _score([log_p[i : i + split_size] for i in range(0, len(log_p), split_size)], len(log_p))


def inception_score_shuffled(
    logits: Any, *, splits: int = 10, shuffle: bool = True, seed: int = 2020
) -> Value:
    """Return torch-fidelity's inception score (metric_isc.py): samples are shuffled, then split evenly.

    `shuffle=False` corresponds to its `samples_shuffle=False`. For the interval and errors see
    `inception_score`.
    """
    log_p = _log_softmax(as_features(logits, "logit"))
    n = len(log_p)
    if not 1 <= splits <= n:
        raise MetricError(f"inception_score_shuffled: splits = {splits} of {n} samples; expected 1 .. {n}")
    if shuffle:
        log_p = log_p[np.random.RandomState(seed).permutation(n)]
    return _score([log_p[i * n // splits : (i + 1) * n // splits] for i in range(splits)], n)


def _score(parts: Sequence[np.ndarray], n: int) -> Value:
    return of_replicates([_exp_divergence(part) for part in parts], n)


def _exp_divergence(log_p: np.ndarray) -> float:
    p = np.exp(log_p)
    # p log p -> 0 as p -> 0.
    mean = np.log(np.maximum(p.mean(axis=0), np.finfo(float).tiny))
    return float(np.exp((p * (log_p - mean)).sum(axis=1).mean()))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
