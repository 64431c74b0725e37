"""The difference of two reports: shared runs, new arms, and numbers that moved by more than their intervals.

A number that both reports have is judged by its two intervals. Equal values are the `same`. A change is
`within` if each estimate is inside the other's interval, `outside` if the intervals are disjoint, otherwise
`between`. Without both intervals it is `unknown`. Disjoint 95 % intervals are stricter than a test at 5 %,
and reports that share runs are not independent, so `outside` marks a change worth a look and is not a test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from reports.race.arms import differing_paths
from reports.stats.speedup import Time, mean_time

Moved = Literal["same", "within", "between", "outside", "unknown"]
CLOSE = 1e-9
"""The relative tolerance of equality; a report's CSV keeps all digits, so only rounding separates equals."""


@dataclass(frozen=True)
class Estimate:
    """An estimate and its interval: None without an interval, 0 or infinity for an open end."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None

    @property
    def ends(self) -> tuple[float, float] | None:
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True)
class ReportSide:
    """One of two reports."""

    name: str
    about: Mapping[str, Any]
    """Metric, target and baseline."""
    numbers: Mapping[tuple[str, str, str], Estimate]
    """By kind (`speedup`, `time`, `final`), axis and arm."""
    runs: Mapping[str, Mapping[str, Any]]
    """The rows of the report's table of runs, by run id."""
    specs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The fields of each arm; empty if only tables were given."""
    protocols: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Evaluation protocols by hash, as far as they are recorded."""


@dataclass(frozen=True)
class Change:
    """A number in both reports."""

    what: str
    axis: str
    arm: str
    before: Estimate
    after: Estimate
    moved: Moved

    @property
    def ratio(self) -> float:
        return self.after.value / self.before.value


@dataclass(frozen=True)
class Difference:
    """Everything in which two reports differ. Pairs are (before, after)."""

    about: Mapping[str, tuple[Any, Any]]
    """Metric, target and baseline, if they differ."""
    shared: tuple[str, ...]
    """Ids of runs in both."""
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    status: Mapping[str, tuple[str, str]]
    """The status of shared runs, if it differs."""
    arms_before: tuple[str, ...]
    """Arms that only the first report has."""
    arms_after: tuple[str, ...]
    changes: tuple[Change, ...]
    """One for each number that both reports have, in the order of the first."""
    specs: tuple[tuple[str, tuple[Any, ...], tuple[Any, ...]], ...]
    """Fields whose values differ between the reports: (path, all values before, all values after)."""
    protocols: tuple[tuple[str, tuple[Any, ...], tuple[Any, ...]], ...]
    """The same for fields of evaluation protocols."""


def compare_reports(before: ReportSide, after: ReportSide) -> Difference:
    """Return everything in which two reports differ.

    Two arms are the same if they have the same fields or share a run, whatever their labels. Otherwise they
    are matched by label.
    """
    after = _renamed(after, _aliases(before, after))
    arms = [{arm for _, _, arm in side.numbers} for side in (before, after)]
    return Difference(
        about={
            key: (value, after.about.get(key))
            for key, value in before.about.items()
            if not _alike(value, after.about.get(key))
        },
        shared=_in_order(before.runs, lambda run: run in after.runs),
        only_before=_in_order(before.runs, lambda run: run not in after.runs),
        only_after=_in_order(after.runs, lambda run: run not in before.runs),
        status={
            run: (str(row["status"]), str(after.runs[run]["status"]))
            for run, row in before.runs.items()
            if run in after.runs and row["status"] != after.runs[run]["status"]
        },
        arms_before=tuple(sorted(arms[0] - arms[1])),
        arms_after=tuple(sorted(arms[1] - arms[0])),
        changes=tuple(
            Change(*key, number, after.numbers[key], moved(number, after.numbers[key]))
            for key, number in before.numbers.items()
            if key in after.numbers
        ),
        specs=_fields(list(before.specs.values()), list(after.specs.values())),
        protocols=_fields(list(before.protocols.values()), list(after.protocols.values())),
    )


def moved(before: Estimate, after: Estimate) -> Moved:
    """Classify the change of a number by its two intervals; see the module docstring."""
    if math.isclose(before.value, after.value, rel_tol=CLOSE):
        return "same"
    if before.ends is None or after.ends is None:
        return "unknown"
    (low, high), (other_low, other_high) = before.ends, after.ends
    if high < other_low or other_high < low:
        return "outside"
    mutual = low <= after.value <= high and other_low <= before.value <= other_high
    return "within" if mutual else "between"


def final_estimates(runs: Sequence[Mapping[str, Any]]) -> dict[str, Estimate]:
    """Return, by arm, the geometric mean of the metric's last value over finished runs, with its t
    interval."""
    finals: dict[str, list[float]] = {}
    for row in runs:
        if row["status"] == "done" and row["final"] not in (None, ""):
            finals.setdefault(str(row["method"]), []).append(float(row["final"]))
    means = {arm: mean_time(Time(value) for value in values) for arm, values in finals.items()}
    return {arm: Estimate(mean.estimate, mean.low, mean.high, mean.n) for arm, mean in means.items()}


def _aliases(before: ReportSide, after: ReportSide) -> dict[str, str]:
    """Return, for arms of `after` that `before` has too, their labels in `before`."""
    known = {repr(sorted(fields.items())): arm for arm, fields in before.specs.items()}
    by_fields = {arm: known.get(repr(sorted(fields.items()))) for arm, fields in after.specs.items()}
    by_run = {
        str(row["method"]): str(before.runs[run]["method"])
        for run, row in after.runs.items()
        if run in before.runs
    }
    return {arm: name for arm, name in (by_fields | by_run).items() if name is not None}


def _renamed(side: ReportSide, names: Mapping[str, str]) -> ReportSide:
    """Return the report with its arms and its baseline relabelled."""
    numbers = {
        (what, axis, names.get(arm, arm)): number for (what, axis, arm), number in side.numbers.items()
    }
    baseline = side.about.get("baseline")
    about = {**side.about, "baseline": names.get(str(baseline), baseline)}
    return replace(side, numbers=numbers, about=about)


def _in_order(runs: Mapping[str, Any], kept: Any) -> tuple[str, ...]:
    return tuple(run for run in runs if kept(run))


def _alike(a: Any, b: Any) -> bool:
    return math.isclose(a, b, rel_tol=CLOSE) if isinstance(a, float) and isinstance(b, float) else a == b


def _fields(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> tuple[tuple[str, tuple[Any, ...], tuple[Any, ...]], ...]:
    """Return the fields that differ; empty if a report has no specs, because only its tables were given."""
    if not before or not after:
        return ()
    fields = []
    for path in differing_paths([*before, *after]):
        old, new = _values(before, path), _values(after, path)
        if set(map(repr, old)) != set(map(repr, new)):
            fields.append((path, old, new))
    return tuple(fields)


def _values(tables: Sequence[Mapping[str, Any]], path: str) -> tuple[Any, ...]:
    """Return the distinct values of a field in order of appearance; None stands for an absent field."""
    values: dict[str, Any] = {}
    for table in tables:
        values.setdefault(repr(table.get(path)), table.get(path))
    return tuple(values.values())
