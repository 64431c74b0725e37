"""Improved precision and recall (Kynkaanniemi et al. 2019), by the rules of ADM or of torch-fidelity."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metrics.arrays import BLOCK, as_pair
from metrics.distances.neighbours import Distance, blocks, check_k, euclid, radii
from metrics.intervals import share
from metrics.value import MetricError, Value


class PrecisionRecall(NamedTuple):
    """Fidelity and coverage of generated samples, each in [0, 1]."""

    precision: Value
    recall: Value


RULES = ("adm", "adm-float16", "torch-fidelity")


def precision_recall(real: Any, fake: Any, *, k: int = 3, rule: str = "adm") -> PrecisionRecall:
    """Return precision (share of fake samples in a real ball) and recall (share of real samples in a fake
    ball).

    A ball extends from a sample to its k-th nearest neighbour in its own set, edge included. `rule` selects
    the arithmetic of distances:

        adm             squared, in float64 (guided-diffusion evaluations/evaluator.py)
        adm-float16     in ADM's released precision: float16 if all pairs stay finite, else float32. Its
                        rounding changes shares by some tenths of a per cent.
        torch-fidelity  float32 (metric_prc.py)

    The intervals are Wilson's for the samples tested, with the balls fixed. Raises `MetricError` for bad
    features, k or rule.
    """
    if rule not in RULES:
        raise MetricError(f"precision_recall: unknown rule '{rule}' (known: {', '.join(RULES)})")
    x, y = map(torch.from_numpy, as_pair(real, fake))
    check_k(k, len(x), len(y))
    if rule != "adm":
        x, y = x.float(), y.float()
    real_radii, fake_radii = radii(x, k, _distance(rule, x, x)), radii(y, k, _distance(rule, y, y))
    real_inside = torch.zeros(len(x), dtype=torch.bool)
    fake_inside = torch.zeros(len(y), dtype=torch.bool)
    for part, distance in blocks(x, y, _distance(rule, x, y)):
        real_inside[part] = (distance <= fake_radii).any(dim=1)
        fake_inside |= (distance <= real_radii[part, None]).any(dim=0)
    return PrecisionRecall(share(fake_inside.numpy(), len(y)), share(real_inside.numpy(), len(y)))


def _distance(rule: str, a: Tensor, b: Tensor) -> Distance:
    """Return the rule's distance, in float16 only if every distance between a and b is finite there."""
    if rule == "torch-fidelity":
        return euclid
    if rule == "adm":
        return _squared
    finite = all(_squared16(rows, b).isfinite().all() for rows in a.split(BLOCK))
    return _squared16 if finite else _squared


def _squared(a: Tensor, b: Tensor) -> Tensor:
    return (a.square().sum(1)[:, None] - 2 * (a @ b.T) + b.square().sum(1)).clamp_min(0)


def _squared16(a: Tensor, b: Tensor) -> Tensor:
    """Return `_squared` with every operation rounded to float16; sums accumulate in float32, as on a GPU."""
    a, b = _rounded(a), _rounded(b)
    a_norm, b_norm = (_rounded(_rounded(x.square()).sum(1)) for x in (a, b))
    product = _rounded(2 * _rounded(a @ b.T))
    return _rounded(_rounded(a_norm[:, None] - product) + b_norm).clamp_min(0)


def _rounded(x: Tensor) -> Tensor:
    return x.half().float()
