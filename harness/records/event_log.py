"""The events of a run as reports read them: train lines as columns of numbers, all other events as objects.

A long run has thousands of train lines, of which a report needs costs by step. As columns they take less
memory and time than as objects; `python -m benchmarks.big_studies --before CHECKOUT` measures commands.
Every train line is checked as `events.py` does; a file that has another form is read there, line by line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.records.events import Event, check_finished, events_in, parse_lines, read_content
from harness.records.shapes import LARGEST, event_fault

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

TRAINING_PHASES = ("data", "student", "teacher", "encoder", "optimizer", "ema")
"""The phases that count towards time to target. Eval, checkpoint, gradients, tracking and warmup are booked
but do not count."""
TRAIN = b'{"kind":"train",'
"""The start of a train line as the writer of records writes it."""
WORTH = 65_536
"""Bytes of a file from which on columns are faster, because their library needs time to start."""
LONGEST = 4096
"""Most bytes of a train line in columns; they bound the depth and the number of its fields."""
AMOUNTS, VALUES, TABLES = ("images", "flops"), ("loss", "grad_norm", "learning_rate"), ("seconds", "losses")
NEEDED = ("step", "loss", *AMOUNTS, "seconds")


@dataclass(frozen=True)
class TrainColumns:
    """Costs up to each train line, in order; NaN for those that a line does not have."""

    steps: np.ndarray
    images: np.ndarray
    flops: np.ndarray
    seconds: np.ndarray
    """Summed over the training phases."""


@dataclass(frozen=True)
class EventLog:
    """The events of a run, without the objects of its train lines except the last."""

    others: list[Event]
    """All events except train lines, in order."""
    trained: TrainColumns | None
    """None once they were taken (`Record.take_columns`)."""
    last_trained: Event | None
    last: Event | None
    """The last event of any kind."""
    last_timed: Event | None
    """The last event with seconds."""


def read_log(file: Path) -> EventLog:
    """Return the events of a file as `read_events` does, train lines as columns."""
    return _log(file, read_content(file))


def read_finished_log(file: Path, steps: int | None) -> EventLog:
    """Return the events of a finished run as `read_finished` does, train lines as columns."""
    content = read_content(file)
    log = _log(file, content)
    check_finished(file, content, log.others, log.last, steps)
    return log


def log_of(events: Sequence[Event]) -> EventLog:
    """Return events that were read as objects."""
    trained = [event for event in events if event["kind"] == "train"]
    return EventLog(
        [event for event in events if event["kind"] != "train"],
        _columns_of(trained),
        trained[-1] if trained else None,
        events[-1] if events else None,
        next((event for event in reversed(events) if "seconds" in event), None),
    )


def _log(file: Path, content: bytes) -> EventLog:
    found = _in_columns(content) if len(content) >= WORTH else None
    return log_of(events_in(file, content.split(b"\n")[:-1])) if found is None else found


def _in_columns(content: bytes) -> EventLog | None:
    """Return the log of complete lines; None if they are not all of the writer's form."""
    starts, ends, is_train = _lines(content)
    if not is_train.any() or (ends - starts)[is_train].max() > LONGEST:
        return None
    between = list(zip(starts[~is_train].tolist(), ends[~is_train].tolist(), strict=True))
    others = parse_lines([content[start : end - 1] for start, end in between])
    if others is None or any(event["kind"] == "train" for event in others):
        return None
    cuts = [0, *(place for line in between for place in line), int(ends[-1])]
    trained = b"".join(content[cuts[i] : cuts[i + 1]] for i in range(0, len(cuts), 2))
    columns = _read_columns(trained, int(is_train.sum()))
    if columns is None:
        return None
    for event in others:
        event["kind"] = sys.intern(event["kind"])
        if "protocol" in event:
            event["protocol"] = sys.intern(str(event["protocol"]))
    last_trained: Event = json.loads(_last_line(trained))
    after = int(is_train[::-1].argmax())
    ends_of = [last_trained, *others[len(others) - after :]]
    timed = next(event for event in reversed(ends_of) if "seconds" in event)
    return EventLog(others, columns, last_trained, ends_of[-1], timed)


def _lines(content: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the start and the end of each complete line, and whether it starts as a train line."""
    import numpy as np

    ends = np.flatnonzero(np.frombuffer(content, np.uint8) == ord("\n")) + 1
    starts = np.concatenate([[0], ends])[:-1].astype(np.int64)
    # A text at each byte. The bytes added to the content complete the last of them.
    heads = np.ndarray(len(content) + 1, f"S{len(TRAIN)}", content + TRAIN, strides=(1,))
    return starts, ends, heads[starts] == TRAIN


def _last_line(content: bytes) -> bytes:
    return content[content.rfind(b"\n", 0, -1) + 1 : -1]


def _read_columns(content: bytes, count: int) -> TrainColumns | None:
    """Return the columns of train lines; None if a line has another form, or a value that is not valid."""
    import pyarrow as pa
    import pyarrow.json

    schema = _schema(content[: content.index(b"\n")], _last_line(content))
    if schema is None:
        return None
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
    # A field without a value may be absent from a line, which is valid, or null, which may not be.
    if table.num_rows != count or (_lacks(table) and b"null" in content):
        return None
    return _checked(table)


def _schema(*lines: bytes) -> pa.Schema | None:
    """Return the types of the fields that these lines have; None if one is no valid event."""
    import pyarrow as pa

    tables: dict[str, dict[str, None]] = {name: {} for name in TABLES}
    for line in lines:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            return None
        if event_fault(event):
            return None
        for name in TABLES:
            tables[name] |= dict.fromkeys(event.get(name, {}))
    numbers = [(name, pa.float64()) for name in (*AMOUNTS, *VALUES)]
    structs = [
        (name, pa.struct([(key, pa.float64()) for key in keys])) for name, keys in tables.items() if keys
    ]
    return pa.schema([("kind", pa.string()), ("step", pa.int64()), *numbers, *structs])


def _checked(table: pa.Table) -> TrainColumns | None:
    """Return the costs of a table whose values are those of events; None for another one."""
    import numpy as np

    # Every optional struct is in all lines or in none, because a null would hide which line lacks it.
    present = [name for name in table.column_names if table[name].null_count < table.num_rows]
    complete = (*NEEDED, *(name for name in TABLES if name in present))
    if any(name not in present or table[name].null_count for name in complete):
        return None
    # A number that a line may lack is NaN there, which no comparison below finds.
    seconds, losses = (_fields(table, name) if name in present else {} for name in TABLES)
    numbers = {name: table[name].to_numpy() for name in ("step", *AMOUNTS, *VALUES) if name in present}
    amounts = [numbers["step"], *(numbers[name] for name in AMOUNTS), *seconds.values()]
    values = [*(numbers[name] for name in VALUES if name in numbers), *losses.values()]
    with np.errstate(invalid="ignore"):
        if any((column < 0).any() or (column >= LARGEST).any() for column in amounts):
            return None
        if any((np.isfinite(column) & (np.abs(column) >= LARGEST)).any() for column in values):
            return None
    if any(np.isnan(numbers[name]).any() for name in AMOUNTS):
        return None
    total = np.zeros(table.num_rows)
    for phase in TRAINING_PHASES:
        if phase in seconds:
            total += np.nan_to_num(seconds[phase])
    return TrainColumns(numbers["step"], numbers["images"], numbers["flops"], total)


def _lacks(table: pa.Table) -> bool:
    """Return whether a field of a line has no value."""
    structs = [table[name].combine_chunks() for name in TABLES if name in table.column_names]
    fields = [struct.field(place) for struct in structs for place in range(struct.type.num_fields)]
    return any(column.null_count for column in (*table.columns, *fields))


def _fields(table: pa.Table, name: str) -> dict[str, np.ndarray]:
    """Return the columns of a struct by name, NaN if a line lacks a field."""
    struct = table[name].combine_chunks()
    return {
        struct.type.field(place).name: struct.field(place).to_numpy(zero_copy_only=False)
        for place in range(struct.type.num_fields)
    }


def _columns_of(events: Sequence[Event]) -> TrainColumns:
    import numpy as np

    def column(name: str) -> np.ndarray:
        return np.array([event.get(name, np.nan) for event in events], dtype=float)

    seconds = [
        sum(event["seconds"].get(phase, 0.0) for phase in TRAINING_PHASES) if "seconds" in event else np.nan
        for event in events
    ]
    steps = np.array([event["step"] for event in events], dtype=np.int64)
    return TrainColumns(steps, column("images"), column("flops"), np.array(seconds, dtype=float))
