"""Curves of runs: the antitonic fit of a metric against steps, and the costs of reaching a step.

A metric here is positive and better when lower (a distance).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from harness.errors import UserError
from harness.records.early_end import EarlyEnd
from harness.records.measured import evaluation_costs, measured
from harness.records.record import Record
from harness.records.targets import antitonic

AXES = ("steps", "images", "flops", "seconds", "gpu_seconds")
CLOCK_AXES = ("seconds", "gpu_seconds")


@dataclass(frozen=True)
class Curve:
    """A metric of one run against its steps; all three arrays have one entry per evaluation."""

    steps: np.ndarray
    """Strictly increasing, from 1."""
    measured: np.ndarray
    fitted: np.ndarray
    """The antitonic fit, which never rises."""
    weights: np.ndarray | None = None
    """Those of the fit; None if all are equal."""

    @cached_property
    def log_fitted(self) -> np.ndarray:
        return np.log(self.fitted)

    def until(self, place: int) -> Curve:
        """Return the curve up to the evaluation at a place, fitted without later ones."""
        kept = slice(place + 1)
        weights = None if self.weights is None else self.weights[kept]
        return fit(self.steps[kept], self.measured[kept], weights)


@dataclass(frozen=True)
class Costs:
    """The cumulative costs of a run at its steps (0 included), one array per axis."""

    steps: np.ndarray
    totals: dict[str, np.ndarray]
    given: Mapping[str, float] | None = None
    """The totals at the last step of a run that ended early; None for any other run.

    Its seconds to that step are unknown, so that it has no clock axis."""

    def at(self, axis: str, step: float) -> float:
        """Return the total at a step, linear between the record's lines and constant after the last."""
        return float(np.interp(step, self.steps, self.totals[axis]))

    def at_each(self, axis: str, steps: np.ndarray) -> np.ndarray:
        """Return the totals at steps."""
        return np.interp(steps, self.steps, self.totals[axis])

    def budget(self, axis: str) -> float:
        """Return the budget that the run was given, which it did not use up if it ended early.

        Requires `knows`.
        """
        return float(self.totals[axis][-1] if self.given is None else self.given[axis])

    def knows(self, axis: str) -> bool:
        """Return whether the run has a budget on an axis."""
        return axis in (self.totals if self.given is None else self.given)

    def of_early_end(self, end: EarlyEnd) -> Costs:
        """Return the costs with the budget of a run that ended early: steps, images and FLOPs, which are
        counted."""
        counted = {"steps": float(end.steps), "images": float(end.images), "flops": float(end.flops)}
        return replace(self, given={axis: value for axis, value in counted.items() if axis in self.totals})


def equal_flops(costs: Iterable[Costs]) -> str:
    """Return the sentence about runs of different steps and equal FLOPs, each less than a step short of the
    most (`budget.flops_per_run` of a study); empty for other runs."""
    known = [one for one in costs if one.knows("steps") and one.knows("flops")]
    steps = [one.budget("steps") for one in known if one.budget("steps") > 0]
    flops = [one.budget("flops") for one in known if one.budget("steps") > 0]
    if len({*steps}) < 2 or max(flops) - min(flops) >= max(f / n for f, n in zip(flops, steps, strict=True)):
        return ""
    return (
        f"The runs had equal counted FLOPs ({max(flops):.3g}) and not equal steps: from {min(steps):,.0f} to "
        f"{max(steps):,.0f}, as many as fit."
    )


def fit(
    steps: Sequence[float] | np.ndarray,
    measured: Sequence[float] | np.ndarray,
    weights: Sequence[float] | np.ndarray | None = None,
) -> Curve:
    """Return antitonic least squares of log metric on step (pool adjacent violators).

    `weights` are inverse variances of log metric, for replicated evaluations. Evaluations at step 0 are left
    out, because 0 has no logarithm. Raises `UserError` for a metric that is not positive or steps that
    do not increase.
    """
    x, y = np.asarray(steps, dtype=float), np.asarray(measured, dtype=float)
    if not (np.diff(x) > 0).all():
        raise UserError("evaluations must have increasing steps")
    if not (np.isfinite(y) & (y > 0)).all():
        bad = int(np.flatnonzero(~(np.isfinite(y) & (y > 0)))[0])
        raise UserError(
            f"the metric is {y[bad]:g} at step {x[bad]:g}, but the fit needs its logarithm: "
            "every value must be above 0"
        )
    kept = x > 0
    w = None if weights is None else np.asarray(weights, dtype=float)[kept]
    return Curve(x[kept], y[kept], antitonic(y[kept], w), w)


def rises(curves: Sequence[Curve]) -> bool:
    """Return whether a metric rises in every run, so that it is no distance.

    Compared are the means over the first and over the last quarter of the evaluations.
    """
    ends = [
        (curve.measured[: n // 4 + 1].mean(), curve.measured[-(n // 4 + 1) :].mean())
        for curve in curves
        if (n := len(curve.steps)) > 1
    ]
    return bool(ends) and all(first < last for first, last in ends)


def value_at(curve: Curve, step: float) -> float | None:
    """Return the fitted metric at a step, linear in logs between evaluations; None outside their range."""
    if not curve.steps[0] <= step <= curve.steps[-1]:
        return None
    return float(np.exp(np.interp(math.log(step), np.log(curve.steps), np.log(curve.fitted))))


def slope_at(curve: Curve, step: float) -> float | None:
    """Return d log metric / d log step around a step; None for fewer than three evaluations.

    It is fitted by least squares to the evaluations between half and twice the step, or to the nearest three.
    """
    if len(curve.steps) < 3:
        return None
    away = np.abs(np.log(curve.steps / step))
    near = away <= max(math.log(2) * (1 + 1e-9), np.partition(away, 2)[2])
    x, y = np.log(curve.steps[near]), np.log(curve.measured[near])
    return float(np.cov(x, y)[0, 1] / x.var(ddof=1))


def curve_of(record: Record, metric: str) -> Curve | None:
    """Return the curve of a metric in a record; None if it was not evaluated after step 0."""
    found = measured(record, metric)
    if found is None:
        return None
    try:
        return fit(found.steps, found.means, found.weights)
    except UserError as error:
        raise UserError(f"run {record.id}, {metric}: {error}") from error


def costs_of(record: Record) -> Costs:
    """Return cumulative cost from the `train` and `eval` events of a record.

    Seconds cover the training phases only; evaluation, checkpoints, tracking and warm-up (compilation) are
    left out.
    """
    trained, evaluated = record.take_columns(), evaluation_costs(record)
    steps = np.concatenate([trained.steps, evaluated.steps])
    order = np.argsort(steps, kind="stable")
    # Of several lines at a step the last one counts.
    kept = order[np.diff(steps[order], append=np.iinfo(np.int64).max) > 0]
    kept = kept[steps[kept] > 0]

    def totals(of_train: np.ndarray, of_evaluations: np.ndarray) -> np.ndarray:
        found = np.concatenate([of_train, of_evaluations])[kept]
        if np.isnan(found).any():
            raise UserError(f"run {record.id}: a train line has no images, flops or seconds")
        return np.concatenate([[0.0], found])

    seconds = totals(trained.seconds, evaluated.seconds)
    at = np.concatenate([[0.0], steps[kept]])
    devices = _devices(record, at[1:])
    found = Costs(
        at,
        {
            "steps": at,
            "images": totals(trained.images, evaluated.images),
            "flops": totals(trained.flops, evaluated.flops),
            "seconds": seconds,
            "gpu_seconds": np.concatenate([[0.0], np.cumsum(np.diff(seconds) * devices)]),
        },
    )
    return found if record.early_end is None else found.of_early_end(record.early_end)


def _devices(record: Record, steps: np.ndarray) -> np.ndarray:
    """Return the number of devices that each step ran on; resuming may change it."""
    devices = np.ones(len(steps))
    for start in record.environment:
        devices[steps > start.get("after_step", 0)] = start.get("devices", 1)
    return devices
