"""Lines of events as columns of numbers: what train lines and evaluations have in common.

Every line is checked as `events.py` does. Lines that are not all of one form have no columns.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.records.events import Event
from harness.records.shapes import LARGEST, event_fault

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

TRAINING_PHASES = ("data", "student", "teacher", "encoder", "optimizer", "ema")
"""The phases that count towards time to target. Eval, checkpoint, gradients, tracking and warmup are booked
but do not count."""
AMOUNTS = ("images", "flops")


@dataclass(frozen=True)
class CostColumns:
    """Costs up to each line, in order; NaN for those that a line does not have."""

    steps: np.ndarray
    images: np.ndarray
    flops: np.ndarray
    seconds: np.ndarray
    """Summed over the training phases."""


def last_line(content: bytes) -> bytes:
    """Return the last of complete lines, without its line break."""
    return content[content.rfind(b"\n", 0, -1) + 1 : -1]


def end_events(content: bytes) -> list[Event] | None:
    """Return the first and the last event of complete lines; None if one is not valid."""
    try:
        events = [json.loads(line) for line in (content[: content.index(b"\n")], last_line(content))]
    except (ValueError, RecursionError):
        return None
    return None if any(map(event_fault, events)) else events


def struct_type(names: Iterable[str]) -> pa.DataType:
    """Return the type of a table of numbers with these names."""
    import pyarrow as pa

    return pa.struct([(name, pa.float64()) for name in names])


def read_table(content: bytes, count: int, schema: pa.Schema) -> pa.Table | None:
    """Return a row for each of `count` lines; None if a line has other fields or types."""
    import pyarrow as pa
    import pyarrow.json

    try:
        table = pyarrow.json.read_json(
            pa.BufferReader(content),
            pyarrow.json.ReadOptions(use_threads=False, block_size=len(content) + 1),
            pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
            # Its default pool keeps what it frees.
            pa.system_memory_pool(),
        )
    except (ValueError, pa.ArrowException):
        return None
    return table if table.num_rows == count else None


def is_complete(table: pa.Table, names: Iterable[str]) -> bool:
    """Return whether every line has a value of these fields."""
    return all(name in table.column_names and not table[name].null_count for name in names)


def fields_of(struct: pa.StructArray) -> dict[str, pa.Array]:
    """Return the columns of a struct by name, without regard to lines that lack the struct."""
    return {struct.type.field(place).name: struct.field(place) for place in range(struct.type.num_fields)}


def are_amounts(columns: Iterable[pa.Array | pa.ChunkedArray]) -> bool:
    """Return whether all numbers are those of `shapes.is_amount`; a line may lack one."""
    numbers = (column.drop_null().to_numpy() for column in columns)
    return all(((column >= 0) & (column < LARGEST)).all() for column in numbers)


def are_values(columns: Iterable[pa.Array | pa.ChunkedArray]) -> bool:
    """Return whether all numbers are those of `shapes.is_value`; a line may lack one."""
    import numpy as np

    numbers = (column.drop_null().to_numpy() for column in columns)
    return not any((np.isfinite(column) & (np.abs(column) >= LARGEST)).any() for column in numbers)


def training_seconds(seconds: Mapping[str, pa.Array], count: int) -> np.ndarray:
    """Return the sum over the training phases in each of `count` lines, which may lack some."""
    import numpy as np

    total = np.zeros(count)
    for phase in TRAINING_PHASES:
        if phase in seconds:
            total += seconds[phase].fill_null(0.0).to_numpy()
    return total
