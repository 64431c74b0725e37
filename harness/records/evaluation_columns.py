"""The evaluations of a run as columns: their costs, and the mean of each metric.

A report of many runs needs only these numbers of most evaluations. The events are parsed from their lines
when one is asked for. Evaluations have columns if all have the same metrics, each with no more than an
interval and n; replicates, successes, errors and other fields are read as objects.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

from harness.records.columns import (
    AMOUNTS,
    CostColumns,
    are_amounts,
    are_values,
    end_events,
    fields_of,
    is_complete,
    last_line,
    read_table,
    struct_type,
    training_seconds,
)
from harness.records.events import Event

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

EVALUATION = b'{"kind":"eval",'
"""The start of an evaluation as the writer of records writes it."""
FIELDS = {"kind", "step", *AMOUNTS, "seconds", "metrics", "protocol"}
ROW = {"mean", "low", "high", "n"}


@dataclass(frozen=True, eq=False)
class EvaluationColumns(Sequence[Event]):
    """The evaluations during training, in order: a sequence of their events, and columns of their numbers."""

    costs: CostColumns
    means: Mapping[str, np.ndarray]
    """The mean at each evaluation, by metric in the order of the record."""
    protocols: tuple[str, ...]
    """The hashes of protocols, each once, in order."""
    content: bytes
    """The lines."""

    def __len__(self) -> int:
        return len(self.costs.steps)

    @overload
    def __getitem__(self, place: int) -> Event: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Event]: ...
    def __getitem__(self, place: int | slice) -> Event | Sequence[Event]:
        return self.last if place == -1 else list(self)[place]

    def __iter__(self) -> Iterator[Event]:
        # One call for all lines, after which events share their keys.
        events = json.loads(b"[" + b",".join(self.content.split(b"\n")[:-1]) + b"]")
        for event in events:
            share_texts(event)
        return iter(events)

    @property
    def last(self) -> Event:
        return share_texts(json.loads(last_line(self.content)))


def share_texts(event: Event) -> Event:
    """Keep texts that are the same in many events of many runs once; return the event."""
    event["kind"] = sys.intern(event["kind"])
    if "protocol" in event:
        event["protocol"] = sys.intern(str(event["protocol"]))
    return event


def read_evaluation_columns(content: bytes, count: int) -> EvaluationColumns | None:
    """Return the columns of evaluations; None if a line has another form, or a value that is not valid."""
    schema = _schema(content)
    table = None if schema is None else read_table(content, count, schema)
    if table is None or not is_complete(table, FIELDS):
        return None
    metrics, seconds = (fields_of(table[name].combine_chunks()) for name in ("metrics", "seconds"))
    if any(column.null_count for column in seconds.values()) and not _nulls_are_of_rows(content):
        return None
    costs = [table[name] for name in ("step", *AMOUNTS)]
    if not (are_amounts([*costs, *seconds.values()]) and all(map(_is_metric, metrics.values()))):
        return None
    if table["kind"].unique().to_pylist() != ["eval"]:
        return None
    steps, images, flops = (column.to_numpy() for column in costs)
    return EvaluationColumns(
        CostColumns(steps, images, flops, training_seconds(seconds, count)),
        {name: rows.field("mean").to_numpy() for name, rows in metrics.items()},
        tuple(map(sys.intern, table["protocol"].unique().to_pylist())),
        content,
    )


def _schema(content: bytes) -> pa.Schema | None:
    """Return the types of the fields of evaluations; None if the first or the last has another form."""
    import pyarrow as pa

    ends = end_events(content)
    if ends is None or any(event.keys() != FIELDS or not event["metrics"] for event in ends):
        return None
    first, last = ends
    rows = [row for event in ends for row in event["metrics"].values()]
    if list(first["metrics"]) != list(last["metrics"]) or not all(row.keys() <= ROW for row in rows):
        return None
    phases = first["seconds"] | last["seconds"]
    # The names of rows that may be null are found by text (`_nulls_are_of_rows`).
    if not phases or phases.keys() & ROW:
        return None
    row = pa.struct([*((name, pa.float64()) for name in ("mean", "low", "high")), ("n", pa.int64())])
    return pa.schema(
        [
            ("kind", pa.string()),
            ("step", pa.int64()),
            *((name, pa.float64()) for name in AMOUNTS),
            ("seconds", struct_type(phases)),
            ("metrics", pa.struct([(name, row) for name in first["metrics"]])),
            ("protocol", pa.string()),
        ]
    )


def _is_metric(rows: pa.StructArray) -> bool:
    """Return whether every evaluation has a valid row of a metric."""
    mean, low, high, n = (rows.field(name) for name in ("mean", "low", "high", "n"))
    if rows.null_count or mean.null_count or not are_amounts([n]):
        return False
    return are_values([mean, low, high])


def _nulls_are_of_rows(content: bytes) -> bool:
    """Return whether no number but those of a metric is null: a phase may be absent, and not null."""
    return content.count(b"null") == sum(content.count(b'"%s":null' % name.encode()) for name in ROW)
