"""The crossing of a target by a curve.

Single evaluations are noisy, so the first raw value below the target comes too early, and the earlier the
more evaluations there are. The crossing of the fit does not depend on the number of evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from reports.stats.curves import Curve, fit

ROUNDING = 1e-12
"""Slack, in log metric, for a fit that meets the target exactly."""
Censored = Literal["left", "right"] | None


@dataclass(frozen=True)
class Crossing:
    """The step at which a curve reaches a target.

    `left`-censored: already below the target at the first evaluation, so the step is an upper bound.
    `right`-censored: never below the target, so the step of the last evaluation is a lower bound.
    """

    step: float
    censored: Censored = None
    bracket: float = 1.0
    """Ratio of the steps of the evaluations after and before the crossing; 1 for a censored crossing."""


def crossing(curve: Curve, target: float) -> Crossing:
    """Return the *sustained* crossing: the step from which on the fit stays at or below the target.

    It is linear in (log step, log metric) between evaluations. The fit never rises, so evaluations that get
    worse later delay the crossing.
    """
    below = curve.log_fitted <= math.log(target) + ROUNDING
    if not below.any():
        return Crossing(float(curve.steps[-1]), "right")
    after = int(below.argmax())
    if after == 0:
        return Crossing(float(curve.steps[0]), "left")
    x0, x1 = np.log(curve.steps[after - 1 : after + 1])
    y0, y1 = np.log(curve.fitted[after - 1 : after + 1])
    share = min((y0 - math.log(target)) / (y0 - y1), 1.0)
    return Crossing(float(np.exp(x0 + share * (x1 - x0))), bracket=float(np.exp(x1 - x0)))


def first_crossing(curve: Curve, target: float) -> Crossing:
    """Return the crossing of the curve up to its best evaluation, so that a later decline does not count."""
    best = int(curve.measured.argmin()) + 1
    found = crossing(fit(curve.steps[:best], curve.measured[:best]), target)
    return Crossing(float(curve.steps[-1]), "right") if found.censored == "right" else found


def reachable_target(curves: Sequence[Curve]) -> float:
    """Return the lowest target that all curves reach: the largest last fitted value, rounded up to three
    digits."""
    last = max(curve.fitted[-1] for curve in curves)
    unit = 10.0 ** (math.floor(math.log10(last)) - 2)
    return float(f"{math.ceil(last / unit - 1e-9) * unit:.6g}")
