"""The early end of a run: a rule by which it has reached its targets for good, and what its record keeps.

A run that ends early is the beginning of the run that its spec describes. It is not censored, and the budget
that it was given stays that of all its steps, so it makes no horizon smaller. Without the rule it is
continued to its last step, with the bits of an unbroken run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

# Any: values of JSON.
from typing import Any

from harness.errors import UserError
from harness.records.evaluations import falling, row_of
from harness.records.shapes import is_amount, is_count

PATIENCE = 3
"""The default number of evaluations in a row at or below the target."""
FORBIDS = (
    "values at the end of a run",
    "lower targets",
    "a decline after the target",
)
"""Questions that runs which end early cannot answer."""


@dataclass(frozen=True)
class EndRule:
    """A run ends at the first evaluation with which every metric has crossed its target for good.

    That is the last of `patience` evaluations in a row at or below target (1 - margin).
    """

    targets: tuple[tuple[str, float], ...]
    """Metrics and their targets; that of a share is its shortfall, for example `1-success@pusht`."""
    patience: int = PATIENCE
    margin: float = 0.0

    def __str__(self) -> str:
        goals = " and ".join(f"{metric} <= {target:.10g}" for metric, target in self.targets)
        below = f", by {100 * self.margin:g} %" if self.margin else ""
        return f"{goals} in {self.patience} evaluations in a row{below}"

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(metric for metric, _ in self.targets)

    def end(self, values: Mapping[str, Sequence[tuple[int, float]]]) -> int | None:
        """Return the step of the evaluation at which a run ends, from (step, value) by metric.

        None if the run continues.
        """
        steps = []
        for metric, target in self.targets:
            own = [(step, value) for step, value in values.get(metric, ()) if step > 0]
            place = crossed_for_good([value for _, value in own], target, self.patience, self.margin)
            if place is None:
                return None
            steps.append(own[place][0])
        return max(steps)

    def end_of(self, evaluations: Iterable[Mapping[str, Any]]) -> int | None:
        """Return the same for evaluations of a record, which are under the same conditions."""
        return self.end(values_of(evaluations, self.metrics))


@dataclass(frozen=True)
class EarlyEnd:
    """The place and the reason of an early end, and the budget that the run was given."""

    step: int
    """The step of the evaluation at which its rule held."""
    steps: int
    """The number of steps of its spec."""
    reason: str
    images: int
    flops: float
    """The budget that it was given: the totals of a run to `steps`."""

    def row(self) -> dict[str, Any]:
        """Return the entry of a run's `done` file."""
        return asdict(self)

    def __str__(self) -> str:
        return f"ended at step {self.step} of {self.steps}: {self.reason}"


def crossed_for_good(
    values: Sequence[float], target: float, patience: int = PATIENCE, margin: float = 0.0
) -> int | None:
    """Return the place of the last of `patience` values in a row at or below target (1 - margin).

    None without them.
    """
    run, limit = 0, target * (1 - margin)
    for place, value in enumerate(values):
        run = run + 1 if value <= limit else 0
        if run == patience:
            return place
    return None


def values_of(
    evaluations: Iterable[Mapping[str, Any]], metrics: Iterable[str]
) -> dict[str, list[tuple[int, float]]]:
    """Return (step, mean) of these metrics or shortfalls, of evaluations of a record."""
    events = [event for event in evaluations if "metrics" in event]
    return {
        metric: [
            (event["step"], row["mean"])
            for event in events
            if (row := row_of(dict(event), metric)) is not None
        ]
        for metric in metrics
    }


def parse_end_rule(texts: Iterable[str], patience: int, margin: float) -> EndRule | None:
    """Return the rule of texts `METRIC<=VALUE`; None without any.

    Raises `UserError` for another text, and for a success, which rises: its shortfall has a target.
    """
    targets: dict[str, float] = {}
    for text in texts:
        metric, sign, number = text.rpartition("<=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not (sign and metric.strip() and math.isfinite(value) and value > 0):
            raise UserError(
                f"--end-when {text}: expected METRIC<=VALUE with a value above 0, for example "
                "--end-when 'fd:local<=8.0'"
            )
        name = metric.strip()
        if falling(name) != name:
            raise UserError(
                f"--end-when {text}: {name} rises as it improves; for a success of 0.8 write "
                f"--end-when '{falling(name)}<=0.2'"
            )
        targets[name] = min(value, targets.get(name, value))
    return EndRule(tuple(targets.items()), patience, margin) if targets else None


def end_words(rule: EndRule | None) -> tuple[str, ...]:
    """Return the options of `flowrace run` for a rule; empty without one."""
    if rule is None:
        return ()
    goals = (word for metric, target in rule.targets for word in ("--end-when", f"{metric}<={target!r}"))
    return (*goals, "--patience", str(rule.patience), "--margin", repr(rule.margin))


def parse_early_end(row: Any) -> EarlyEnd | None:
    """Return the early end in the `ended` of a done file; raises ValueError for another value."""
    if row is None:
        return None
    names = ("step", "steps", "reason", "images", "flops")
    if not (isinstance(row, dict) and row.keys() >= set(names) and isinstance(row["reason"], str)):
        raise ValueError("ended is no table with step, steps, reason, images and flops")
    counts = all(is_count(row[name]) for name in ("step", "steps", "images"))
    if not (counts and is_amount(row["flops"]) and row["step"] < row["steps"]):
        raise ValueError("the numbers of ended are no counts")
    return EarlyEnd(*(row[name] for name in names))
