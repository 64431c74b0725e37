"""The speed-ups that two published curves give at each target, instead of at one.

A target is a value that the baseline's curve shows. The speed-up there is the baseline's step divided by the
step at which the other method has the same value: a reading `steps_to_<measure>_<value>` if a source gives
one, else between two readings of its curve (linear).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from reports.literature.compare import better, differ, numeric
from reports.literature.entries import PublishedNumber

STEPS_TO = "steps_to_"


class Crossing(NamedTuple):
    """The speed-up at one target."""

    target: PublishedNumber
    """The baseline's number whose value is the target."""
    step: float
    """The step at which the other method has this value."""
    found: tuple[PublishedNumber, ...]
    """The numbers that give this step."""

    @property
    def speedup(self) -> float:
        return float(self.target.steps) / self.step


def crossings(ours: Sequence[PublishedNumber], theirs: Sequence[PublishedNumber]) -> list[Crossing]:
    """Return the speed-up at each number of the baseline that the other method reaches within its readings.

    `ours` may hold readings of steps next to those of the curve. All numbers are numeric.
    """
    found = []
    for target in sorted(theirs, key=_step):
        read = [n for n in ours if _aim(n) == (target.measure, target.value)]
        if read:
            found.append(Crossing(target, float(read[0].value), (read[0],)))
        elif between := _between(ours, target):
            found.append(Crossing(target, *between))
    return found


def _between(
    ours: Sequence[PublishedNumber], target: PublishedNumber
) -> tuple[float, tuple[PublishedNumber, ...]] | None:
    """Return the step at which a curve first has a value, between the readings on both sides of it."""
    curve = sorted((n for n in ours if n.measure == target.measure and isinstance(n.steps, int)), key=_step)
    for before, after in pairwise(curve):
        if better(target, before) and not better(target, after):
            share = (float(target.value) - float(before.value)) / (float(after.value) - float(before.value))
            return _step(before) + share * (_step(after) - _step(before)), (before, after)
    return None


def _aim(number: PublishedNumber) -> tuple[str, float] | None:
    """Return measure and value of a reading such as `steps_to_FID_3.95`; None for other numbers."""
    measure, _, value = number.measure.removeprefix(STEPS_TO).rpartition("_")
    try:
        return (measure, float(value)) if number.measure.startswith(STEPS_TO) else None
    except ValueError:
        return None


def disagree(found: Sequence[Crossing], stated: PublishedNumber) -> bool:
    """Return whether some target gives another speed-up than the stated one, beyond its printed digits."""
    rounded = (stated.model_copy(update={"value": one.speedup}) for one in found)
    return numeric(stated) and any(differ(stated, one) for one in rounded)


def _step(number: PublishedNumber) -> float:
    return float(number.steps)
