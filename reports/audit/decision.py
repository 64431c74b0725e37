"""The decision from an interval to a verdict, for one claim and for a family of claims.

A verdict compares the interval [low, high] of a speed-up with the factors [c1, c2] that fulfil a claim (c2
is infinite for `at_least`). The claim is supported if the interval is inside, refuted if the two are
disjoint, and inconclusive otherwise. The same verdicts follow from one-sided tests at (1 - confidence) / 2.
Holm's method adjusts their doubled p-values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy.special import stdtr

from reports.audit.inputs.claim import Claim
from reports.stats.speedup import Speedup

Verdict = Literal["supported", "refuted", "inconclusive"]


def decide(claim: Claim, gain: Speedup) -> Verdict:
    """Return the verdict of the interval, ignoring preconditions; inconclusive without an interval."""
    if gain.low is None or gain.high is None:
        return "inconclusive"
    if gain.low >= claim.low and gain.high <= claim.high:
        return "supported"
    return "refuted" if gain.high < claim.low or gain.low > claim.high else "inconclusive"


def p_values(claim: Claim, gain: Speedup) -> tuple[float, float]:
    """Return the two-sided p-values of support and of refutation.

    `decide` returns supported (or refuted) if the value is at most 1 - confidence. p is 1 for a speed-up
    without an interval, and for a test on an end that censored times leave open.
    """
    above_low, below_low = _beyond(gain, claim.low, "low"), _beyond(gain, claim.low, "high")
    above_high, below_high = _beyond(gain, claim.high, "low"), _beyond(gain, claim.high, "high")
    return max(above_low, below_high), min(below_low, above_high)


def holm(p: Sequence[float]) -> list[float]:
    """Return adjusted p-values (Holm 1979).

    Rejecting those of at most alpha keeps the family-wise error rate at alpha.
    """
    order = np.argsort(p, kind="stable")
    factors = len(p) - np.arange(len(p))
    stepped = np.maximum.accumulate(np.minimum(np.asarray(p, dtype=float)[order] * factors, 1.0))
    adjusted = np.empty(len(p))
    adjusted[order] = stepped
    return adjusted.tolist()


def _beyond(gain: Speedup, bound: float, end: Literal["low", "high"]) -> float:
    """Return the doubled p-value of the speed-up being above (`low`) or below (`high`) a bound."""
    limit = gain.low if end == "low" else gain.high
    if gain.estimate is None or gain.error is None or limit is None:
        return 1.0
    if math.isinf(bound):
        return 0.0 if end == "high" else 1.0
    if limit == 0 or math.isinf(limit):
        return 1.0
    distance = math.log(gain.estimate / bound) * (1 if end == "low" else -1)
    if gain.error == 0:
        return 0.0 if distance >= 0 else 1.0
    return min(1.0, 2 * float(stdtr(gain.degrees, -distance / gain.error)))
