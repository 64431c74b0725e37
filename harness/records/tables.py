"""Tidy tables of records: one row per run, per logged step, or per value of a metric."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from harness.records.evaluations import protocol_of
from harness.records.flatten import flatten
from harness.records.record import TRAINING_PHASES, Record

if TYPE_CHECKING:
    import pandas as pd


def run_table(records: Iterable[Record]) -> pd.DataFrame:
    """Return one row per run: `run`, `method`, `seed`, `status`, `step`, `path`, and its spec by dotted
    name."""
    return _frame(records, _run)


def training_table(records: Iterable[Record]) -> pd.DataFrame:
    """Return one row per logged step: losses, `grad_norm`, `learning_rate`, and costs so far.

    `loss` is the total and `losses.*` are its named parts. `seconds` is the sum over training phases, and
    `seconds.*` are all phases.
    """
    return _frame(records, _training)


def evaluation_table(records: Iterable[Record]) -> pd.DataFrame:
    """Return one row per run, step and metric: `mean`, `low`, `high`, `n`, `protocol`, and costs so far.

    If a step was evaluated again, its values are the means over replicates.
    """
    return _frame(records, _evaluations)


def gradient_table(records: Iterable[Record]) -> pd.DataFrame:
    """Return one row per reading of the separate gradients: `share`, `cosine`, `norms.*`, `reached.*`,
    `losses.*`, `features.*`, `sameness.*` and the FLOPs of the reading."""
    return _frame(records, _gradients)


TABLES: dict[str, Callable[[Iterable[Record]], pd.DataFrame]] = {
    "runs": run_table,
    "training": training_table,
    "evaluations": evaluation_table,
    "gradients": gradient_table,
}


def _frame(records: Iterable[Record], rows: Callable[[Record], Iterable[dict[str, Any]]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame([_of(record) | row for record in records for row in rows(record)])


def _of(record: Record) -> dict[str, Any]:
    """Return the columns with which every table begins."""
    method = record.spec.get("method", {}).get("name")
    return {"run": record.id, "method": method, "seed": record.spec.get("seed", 0)}


def _run(record: Record) -> Iterator[dict[str, Any]]:
    spec = {
        name: value for name, value in flatten(record.spec).items() if name not in ("method.name", "seed")
    }
    yield {"status": record.status, "step": record.last_step, "path": str(record.path)} | spec


def _training(record: Record) -> Iterator[dict[str, Any]]:
    for event in record.of("train"):
        row = flatten({name: value for name, value in event.items() if name != "kind"})
        yield row | {"seconds": _training_seconds(event)}


def _gradients(record: Record) -> Iterator[dict[str, Any]]:
    for event in record.of("gradients"):
        yield flatten({name: value for name, value in event.items() if name != "kind"})


def _evaluations(record: Record) -> Iterator[dict[str, Any]]:
    for event in record.of("eval"):
        costs = {name: event[name] for name in ("step", "images", "flops")}
        about = costs | {"seconds": _training_seconds(event)}
        for name, value in event["metrics"].items():
            of_metric = {"protocol": protocol_of(event, name), "metric": name}
            yield about | of_metric | {end: value.get(end) for end in ("mean", "low", "high", "n")}


def _training_seconds(event: dict[str, Any]) -> float:
    return sum(event["seconds"].get(phase, 0.0) for phase in TRAINING_PHASES)
