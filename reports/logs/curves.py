"""Curves of one metric and one run, as read from a log, and their common checks."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from harness.errors import UserError, unknown

PREFIX = re.compile(
    r"^(?:eval|evaluation|val|valid|validation|test|metrics?)(?:uation)?[/_. ]+(?=.)", re.IGNORECASE
)
"""The prefixes that loggers give to the name of an evaluated metric."""
SMOOTHED = re.compile(r"smooth|moving.?av|rolling|running.?(?:mean|av)|\bsma\b", re.IGNORECASE)
"""Columns whose values are averages over steps, which reach a target later than the values do."""

SHOWN = 40
"""Characters of a number that an error shows; longer whole numbers are none."""


@dataclass(frozen=True)
class LogPoint:
    """One value of a log."""

    step: int
    value: float
    where: str
    """File and line, for messages."""
    costs: Mapping[str, float] = field(default_factory=dict)
    """Totals since step 0, by axis."""
    protocol: str = ""


@dataclass(frozen=True)
class LogCurve:
    """The values of a metric in one run, in the order of the log."""

    method: str
    seed: int
    metric: str
    points: tuple[LogPoint, ...]
    source: str
    """The file, and where the run is in it."""
    run: str = ""
    """The name of the run in the log."""

    @property
    def name(self) -> str:
        return f"{self.method} seed {self.seed}"


@dataclass(frozen=True)
class Understood:
    """The curves found in logs, and notes on them."""

    curves: tuple[LogCurve, ...]
    notes: tuple[str, ...] = ()


def without_superseded(curve: LogCurve) -> tuple[LogCurve, str]:
    """Return the curve without the points that a resumed run logged again, and a note about them.

    A log that returns to an earlier step has been resumed there, and the later points count. Raises
    `UserError` for a log that goes back to a step that it does not have, and for one that repeats most of its
    steps, because it then holds several runs.
    """
    kept: list[LogPoint] = []
    resumed, dropped = 0, 0
    for point in curve.points:
        if kept and point.step <= kept[-1].step:
            known = [old.step for old in kept]
            if point.step not in known:
                raise UserError(
                    f"{point.where}: the steps of {curve.name} go backwards, from {kept[-1].step} to "
                    f"{point.step}; sort them, and remove rows that a restart superseded"
                )
            first = known.index(point.step)
            resumed, dropped = resumed + 1, dropped + len(kept) - first
            del kept[first:]
        kept.append(point)
    if resumed > 1 and 2 * resumed >= len(kept):
        steps = [point.step for point in curve.points]
        again = next(p for n, p in enumerate(curve.points) if p.step in steps[:n])
        other = curve.points[steps.index(again.step)]
        raise UserError(
            f"{again.where}: {curve.name} has two values of {curve.metric} at step {again.step} (the "
            "other is in "
            f"{other.where}), and at {resumed} steps in all, so it is several runs; give each its own "
            "method or "
            "seed"
        )
    if not dropped:
        return curve, ""
    note = (
        f"{curve.name} was resumed: {dropped} values of {curve.metric} were logged again, and the last "
        "ones count."
    )
    return replace(curve, points=tuple(kept)), note


def check_values(curve: LogCurve) -> None:
    """Raise `UserError` if a value is not a finite number above 0, or if costs decrease."""
    for point in curve.points:
        if not math.isfinite(point.value):
            raise UserError(
                f"{point.where}: value = {point.value}: expected a finite number ({curve.name}, step "
                f"{point.step})"
            )
        if point.value <= 0:
            raise UserError(
                f"{point.where}: value = {point.value:g}: the audit uses the metric's logarithm, so it "
                "must be "
                "above 0"
            )
    for last, point in pairwise(curve.points):
        for axis in point.costs.keys() & last.costs.keys():
            if point.costs[axis] < last.costs[axis]:
                raise UserError(
                    f"{point.where}: {axis} of {curve.name} goes backwards; expected totals since step 0"
                )


def find_metric(wanted: str, known: Iterable[str], where: str) -> str:
    """Return the name in a log of a metric: the name itself, or the only one that is equal without `eval/`.

    Raises `UserError` if no name or more than one fits.
    """
    names = list(dict.fromkeys(known))
    if wanted in names:
        return wanted
    found = [name for name in names if plain_metric(name) == plain_metric(wanted)]
    if len(found) > 1:
        raise UserError(
            f"metric '{wanted}' in {where} may be any of: {', '.join(found)}; give one of these names"
        )
    if not found:
        raise unknown(f"metric in {where}:", wanted, names)
    return found[0]


def plain_metric(name: str) -> str:
    """Return the name of a metric without the prefix of an evaluation, in lower case.

    >>> plain_metric("eval/FID")
    'fid'
    """
    return PREFIX.sub("", name.strip()).lower()


def drop_smoothed(file: object, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the names that are not smoothed, and notes; raises `UserError` if all are smoothed."""
    every = list(names)
    smoothed = [name for name in every if SMOOTHED.search(name)]
    raw = [name for name in every if name not in smoothed]
    if smoothed and not raw:
        raise UserError(
            f"{file}: '{smoothed[0]}' is smoothed, and a smoothed curve reaches a target later; export it "
            "without smoothing"
        )
    return raw, [f"{file}: smoothed columns are left out: {', '.join(smoothed)}."] if smoothed else []


# Any: a cell of a CSV, or a value of JSON.
def number(text: Any, where: str, column: str) -> float:
    """Return a number, which may be infinite or NaN; raises `UserError` for anything else."""
    try:
        if isinstance(text, bool):
            raise ValueError
        return float(text)
    except (TypeError, ValueError, OverflowError):
        raise UserError(
            f"{where}: {column} = '{str(text)[:SHOWN]}': expected a plain number, without a unit"
        ) from None


# Any: a cell of a CSV, or a value of JSON.
def whole_number(text: Any, where: str, column: str) -> int:
    """Return a whole number of up to 64 bits; raises `UserError` for anything else."""
    # A float would round seeds of 64 bits.
    if re.fullmatch(rf"\s*[+-]?[0-9]{{1,{SHOWN}}}\s*", str(text)):
        return _bounded(int(text), where, column)
    value = number(text, where, column)
    if not math.isfinite(value):
        raise UserError(f"{where}: {column} = {text}: expected a finite number")
    if value != int(value):
        raise UserError(f"{where}: {column} = {text}: expected a whole number")
    return _bounded(int(value), where, column)


def _bounded(value: int, where: str, column: str) -> int:
    if abs(value) >= 2**64:
        raise UserError(f"{where}: {column} = {value:.4g}: expected a whole number below 2^64")
    return value


def merged(curves: Sequence[LogCurve]) -> list[LogCurve]:
    """Return curves in which files with one value each are joined, in order of step.

    Raises `UserError` if two of them have the same step.
    """
    groups: dict[tuple[str, int, str], list[LogCurve]] = {}
    for curve in curves:
        groups.setdefault((curve.method, curve.seed, curve.metric), []).append(curve)
    found = []
    for parts in groups.values():
        points = sorted((p for part in parts for p in part.points), key=lambda point: point.step)
        for last, point in pairwise(points):
            if point.step == last.step:
                raise UserError(
                    f"{parts[0].name} has two values of {parts[0].metric} at step {point.step}: "
                    f"{last.where} and "
                    f"{point.where}; give one of them"
                )
        others = f" and {len(parts) - 1} more" if len(parts) > 1 else ""
        found.append(replace(parts[0], points=tuple(points), source=parts[0].source + others))
    return found
