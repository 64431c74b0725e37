"""The number of pairs and the cost that a race is expected to take, before it starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from reports.audit.inputs.claim import Claim
from reports.audit.looks import decided_by
from sweeps.race.race_file import Race


class Expected(NamedTuple):
    """The expected end of the race of one claim, for an assumed speed-up."""

    claim: str
    assumed: str
    factor: float
    pairs: float
    """Mean number of pairs."""
    decided: float
    """Chance of a decision."""
    flops: float | None
    """Mean cost; None if the cost of a pair is unknown."""


def expected_ends(race: Race, spread: float, flops: Mapping[str, int] | None = None) -> list[Expected]:
    """Return what to expect under the claimed speed-up, none, and half of its logarithm.

    `spread` is the standard deviation of log ratios, and `flops` the cost of a run by method. In a family of
    m claims each has an m-th of the error probability, which Holm's method improves on.
    """
    return [
        _expected(race, claim, assumed, factor, spread, flops)
        for claim in race.claims
        for assumed, factor in (
            ("claimed", claim.factor),
            ("half", math.sqrt(claim.factor)),
            ("none", 1.0),
        )
    ]


def _expected(
    race: Race,
    claim: Claim,
    assumed: str,
    factor: float,
    spread: float,
    flops: Mapping[str, int] | None,
) -> Expected:
    alpha = (1 - claim.confidence) / len(race.claims)
    chances = decided_by(claim, math.log(factor), spread, alpha, race.rule.max_pairs)
    looks, cumulative = list(chances), list(chances.values())
    # The race goes from one look to the next if the claim is undecided at the first of them.
    steps = zip(looks, looks[1:], cumulative, strict=False)
    pairs = looks[0] + sum((1 - chance) * (after - before) for before, after, chance in steps)
    cost = None if flops is None else pairs * (flops[claim.baseline] + flops[claim.candidate])
    return Expected(claim.name, assumed, factor, pairs, cumulative[-1], cost)
