"""Questions about the evaluations of a record, answered from columns if it has them, and else from events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from harness.records.columns import TRAINING_PHASES, CostColumns
from harness.records.evaluations import SHORTFALL, protocol_of, row_of
from harness.records.events import Event
from harness.records.record import Record

NOTHING = (0.0,) * len(TRAINING_PHASES)


class Measured(NamedTuple):
    """A metric at evaluations after step 0, in order."""

    steps: np.ndarray
    means: np.ndarray
    weights: np.ndarray | None
    """The number of replicates of each; None if all are equal."""


def metric_names(record: Record) -> list[str]:
    """Return the recorded metrics, in order."""
    if (columns := record.columns) is not None:
        return list(columns.means)
    return list(dict.fromkeys(name for event in record.of("eval") for name in event["metrics"]))


def measured(record: Record, metric: str) -> Measured | None:
    """Return the values of a metric, or of the shortfall 1 - share; None if it has none after step 0."""
    columns = record.columns
    if columns is None or metric.startswith(SHORTFALL):
        return _of_events(record, metric)
    if metric not in columns.means:
        return None
    kept = columns.costs.steps > 0
    steps = columns.costs.steps[kept].astype(float)
    return Measured(steps, columns.means[metric][kept], None) if len(steps) else None


def _of_events(record: Record, metric: str) -> Measured | None:
    rows = {event["step"]: row_of(event, metric) for event in record.of("eval") if event["step"] > 0}
    values = {step: row for step, row in rows.items() if row is not None}
    if not values:
        return None
    means = np.asarray([row["mean"] for row in values.values()], dtype=float)
    return Measured(np.asarray(list(values), dtype=float), means, replicate_weights(list(values.values())))


# Any: a metric's row as in the record.
def replicate_weights(values: list[Mapping[str, Any]]) -> np.ndarray | None:
    """Return the number of replicates of each evaluation as weights of the fit; None if all are equal.

    They are proportional to 1 / variance of log metric. The variance measured over replicates is not used:
    with three of them it is so uncertain that times to target become noisier
    (benchmarks/operating_characteristics.py, `weights`).
    """
    counts = [float(len(value.get("replicates", (0,)))) for value in values]
    return np.asarray(counts) if len(set(counts)) > 1 else None


def last_evaluation(record: Record) -> Event | None:
    """Return the last evaluation; None without one."""
    if (columns := record.columns) is not None:
        return columns.last
    evaluated = record.of("eval")
    return evaluated[-1] if evaluated else None


# Any: a metric's row as in the record.
def last_row(record: Record, metric: str) -> Mapping[str, Any] | None:
    """Return the last value of a metric, or of the shortfall 1 - share; None if it has none."""
    if (columns := record.columns) is not None:
        return row_of(columns.last, metric)
    rows = (row_of(event, metric) for event in reversed(record.of("eval")))
    return next((row for row in rows if row is not None), None)


def protocol_hashes(record: Record, metric: str) -> set[str]:
    """Return the hashes of the protocols under which a recorded metric was measured."""
    if (columns := record.columns) is not None:
        return set(columns.protocols) if metric in columns.means else set()
    return {protocol_of(event, metric) for event in record.of("eval") if metric in event["metrics"]}


def evaluation_errors(record: Record) -> list[tuple[str, str]]:
    """Return the metric and the reason of every value that could not be computed."""
    # Evaluations with errors have no columns.
    events = record.of("eval") if record.columns is None else []
    return [error for event in events for error in event.get("errors", {}).items()]


def evaluation_costs(record: Record) -> CostColumns:
    """Return the costs up to each evaluation. Raises KeyError if one has none."""
    if (columns := record.columns) is not None:
        return columns.costs
    events = record.of("eval")
    images, flops = (np.array([event[name] for event in events], dtype=float) for name in ("images", "flops"))
    seconds = [training_seconds(event["seconds"]) for event in events]
    steps = np.array([event["step"] for event in events], dtype=np.int64)
    return CostColumns(steps, images, flops, np.array(seconds, dtype=float))


def training_seconds(seconds: Mapping[str, float]) -> float:
    """Return the sum over the phases that training needs."""
    return sum(map(seconds.get, TRAINING_PHASES, NOTHING))
