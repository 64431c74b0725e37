"""CKNNA (Huh et al. 2024, The Platonic Representation Hypothesis): the similarity of two representations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metrics.arrays import as_features
from metrics.distances.neighbours import check_k
from metrics.value import MetricError, Value

EPSILON = 1e-6


def cknna(first: Any, second: Any, *, k: int = 10) -> Value:
    """Return the centred kernel nearest-neighbour alignment of features (N, d1) and (N, d2) of the same
    samples.

    Rows are scaled to unit norm. The value is the unbiased HSIC of the two Gram matrices, restricted to pairs
    that are among the k nearest in both, over the geometric mean of each matrix's HSIC with itself
    (minyoungg/platonic-rep metrics.py, `cknna` with `unbiased`). It is at most about 1. Pairs are not
    independent, so there is no interval. Raises `MetricError` for bad features, different N, N < 4 or k
    outside 2 .. N - 1.
    """
    a, b = as_features(first, "first", least=4), as_features(second, "second", least=4)
    if len(a) != len(b):
        raise MetricError(f"cknna needs features of the same samples, but got {len(a)} and {len(b)} rows")
    check_k(k, len(a))
    if k < 2:
        raise MetricError(f"cknna: k = {k}; expected 2 or more")
    gram_a, gram_b = _gram(a), _gram(b)
    near_a, near_b = _near(gram_a, k), _near(gram_b, k)
    both = near_a & near_b
    own = _hsic(gram_a * near_a, gram_a * near_a) * _hsic(gram_b * near_b, gram_b * near_b)
    if not own > 0:
        raise MetricError(
            f"cknna is not defined: its norm is not positive with k = {k} of {len(a)} samples; use a larger k"
        )
    return Value(float(_hsic(gram_a * both, gram_b * both) / (own.sqrt() + EPSILON)), n=len(a))


def _gram(features: Any) -> Tensor:
    unit = torch.nn.functional.normalize(torch.from_numpy(features).double(), dim=1)
    return unit @ unit.T


def _near(gram: Tensor, k: int) -> Tensor:
    """Return an (N, N) mask: row i marks the k samples nearest to i, excluding i."""
    others = gram.clone().fill_diagonal_(-torch.inf)
    return torch.zeros_like(gram, dtype=torch.bool).scatter_(1, others.topk(k, dim=1).indices, True)


def _hsic(a: Tensor, b: Tensor) -> Tensor:
    """Return the unbiased HSIC of two (N, N) matrices, equation 5 of Song et al. (2012)."""
    n = len(a)
    a, b = (x.clone().fill_diagonal_(0) for x in (a, b))
    cross = a.sum(0) @ b.sum(1)
    return ((a * b.T).sum() + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 * cross / (n - 2)) / (n * (n - 3))
