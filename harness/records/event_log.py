"""The events of a run as reports read them: train lines and evaluations as columns, others as objects.

A long run has thousands of lines, of which a report needs costs by step and means of metrics. As columns they
take less memory and time than as objects; `python -m benchmarks.big_studies --before CHECKOUT` measures
commands. Every line is checked as `events.py` does; a file that has another form is read there, line by line.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.records.columns import (
    AMOUNTS,
    TRAINING_PHASES,
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
from harness.records.evaluation_columns import (
    EVALUATION,
    EvaluationColumns,
    read_evaluation_columns,
    share_texts,
)
from harness.records.events import Event, check_finished, events_in, parse_lines, read_content

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

TRAIN = b'{"kind":"train",'
"""The start of a train line as the writer of records writes it."""
WORTH = 65_536
"""Bytes of a file from which on columns are faster, because their library needs time to start."""
LONGEST = 4096
"""Most bytes of a line in columns; they bound the depth and the number of its fields."""
VALUES, TABLES = ("loss", "grad_norm", "learning_rate"), ("seconds", "losses")
NEEDED = ("step", "loss", *AMOUNTS, "seconds")


@dataclass(frozen=True)
class EventLog:
    """The events of a run, without the objects of its train lines except the last."""

    evaluations: Sequence[Event]
    """Evaluations during training, in order: `EvaluationColumns`, or objects."""
    others: list[Event]
    """All events except train lines and evaluations, in order."""
    trained: CostColumns | None
    """None once they were taken (`Record.take_columns`)."""
    last_trained: Event | None
    last: Event | None
    """The last event of any kind."""
    last_timed: Event | None
    """The last event with seconds."""


def read_log(file: Path) -> EventLog:
    """Return the events of a file as `read_events` does, train lines and evaluations as columns."""
    return _log(file, read_content(file))


def read_finished_log(file: Path, steps: int | None) -> EventLog:
    """Return the events of a finished run as `read_finished` does, in columns as `read_log`."""
    content = read_content(file)
    log = _log(file, content)
    check_finished(file, content, _last_step(log.evaluations), log.last, steps)
    return log


def log_of(events: Sequence[Event]) -> EventLog:
    """Return events that were read as objects."""
    trained = [event for event in events if event["kind"] == "train"]
    return EventLog(
        [event for event in events if event["kind"] == "eval"],
        [event for event in events if event["kind"] not in ("train", "eval")],
        _columns_of(trained),
        trained[-1] if trained else None,
        events[-1] if events else None,
        next((event for event in reversed(events) if "seconds" in event), None),
    )


def _log(file: Path, content: bytes) -> EventLog:
    found = _in_columns(content) if len(content) >= WORTH else None
    return log_of(events_in(file, content.split(b"\n")[:-1])) if found is None else found


def _last_step(evaluations: Sequence[Event]) -> int:
    """Return the highest step of evaluations; 0 without one."""
    if isinstance(evaluations, EvaluationColumns):
        return int(evaluations.costs.steps.max())
    return max((event["step"] for event in evaluations), default=0)


def _in_columns(content: bytes) -> EventLog | None:
    """Return the log of complete lines; None if they are not all of the writer's form."""
    lines = _Lines.of(content)
    is_train, is_eval = lines.start_with(TRAIN), lines.start_with(EVALUATION)
    if not is_train.any() or lines.longest(is_train) > LONGEST:
        return None
    trained = lines.joined(is_train)
    costs = _read_columns(trained, int(is_train.sum()))
    if costs is None:
        return None
    evaluations = _evaluation_columns(lines, is_eval)
    is_object = ~is_train if evaluations is None else ~(is_train | is_eval)
    objects = parse_lines(lines.joined(is_object).split(b"\n")[:-1])
    if objects is None:
        return None
    evaluated = [share_texts(event) for event in objects if event["kind"] == "eval"]
    others = [share_texts(event) for event in objects if event["kind"] != "eval"]
    if any(event["kind"] == "train" for event in others) or (evaluations is not None and evaluated):
        return None
    last_trained: Event = json.loads(last_line(trained))
    events = dict(zip(is_object.nonzero()[0].tolist(), objects, strict=True))
    events[int(is_train.nonzero()[0][-1])] = last_trained
    if evaluations is not None:
        events[int(is_eval.nonzero()[0][-1])] = evaluations.last
    last = [events[place] for place in sorted(events)]
    timed = next(event for event in reversed(last) if "seconds" in event)
    return EventLog(
        evaluated if evaluations is None else evaluations, others, costs, last_trained, last[-1], timed
    )


def _evaluation_columns(lines: _Lines, is_eval: np.ndarray) -> EvaluationColumns | None:
    if not is_eval.any() or lines.longest(is_eval) > LONGEST:
        return None
    return read_evaluation_columns(lines.joined(is_eval), int(is_eval.sum()))


@dataclass(frozen=True, eq=False)
class _Lines:
    """The complete lines of a file."""

    content: bytes
    starts: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, content: bytes) -> _Lines:
        import numpy as np

        ends = np.flatnonzero(np.frombuffer(content, np.uint8) == ord("\n")) + 1
        return cls(content, np.concatenate([[0], ends])[:-1].astype(np.int64), ends)

    def start_with(self, head: bytes) -> np.ndarray:
        """Return whether each line starts with a text."""
        import numpy as np

        # A text at each byte. The bytes added to the content complete the last of them.
        heads = np.ndarray(len(self.content) + 1, f"S{len(head)}", self.content + head, strides=(1,))
        return heads[self.starts] == head

    def longest(self, chosen: np.ndarray) -> int:
        return int((self.ends - self.starts)[chosen].max())

    def joined(self, chosen: np.ndarray) -> bytes:
        """Return the chosen lines, each with its line break."""
        import numpy as np

        edges = np.flatnonzero(np.diff(chosen, prepend=False, append=False))
        pieces = zip(self.starts[edges[::2]].tolist(), self.ends[edges[1::2] - 1].tolist(), strict=True)
        return b"".join(self.content[start:end] for start, end in pieces)


def _read_columns(content: bytes, count: int) -> CostColumns | None:
    """Return the columns of train lines; None if a line has another form, or a value that is not valid."""
    schema = _schema(content)
    table = None if schema is None else read_table(content, count, schema)
    # A field without a value may be absent from a line, which is valid, or null, which may not be.
    if table is None or (_lacks(table) and b"null" in content):
        return None
    return _checked(table)


def _schema(content: bytes) -> pa.Schema | None:
    """Return the types of the fields that the first and the last line have; None if one is no valid event."""
    import pyarrow as pa

    ends = end_events(content)
    if ends is None:
        return None
    tables = {name: [key for event in ends for key in event.get(name, {})] for name in TABLES}
    numbers = [(name, pa.float64()) for name in (*AMOUNTS, *VALUES)]
    structs = [(name, struct_type(dict.fromkeys(keys))) for name, keys in tables.items() if keys]
    return pa.schema([("kind", pa.string()), ("step", pa.int64()), *numbers, *structs])


def _checked(table: pa.Table) -> CostColumns | None:
    """Return the costs of a table whose values are those of events; None for another one."""
    # Every optional struct is in all lines or in none, because a null would hide which line lacks it.
    present = [name for name in table.column_names if table[name].null_count < table.num_rows]
    if not is_complete(table, (*NEEDED, *(name for name in TABLES if name in present))):
        return None
    seconds, losses = (fields_of(table[name].combine_chunks()) if name in present else {} for name in TABLES)
    costs = [table[name] for name in ("step", *AMOUNTS)]
    values = [*(table[name] for name in VALUES if name in present), *losses.values()]
    if not (are_amounts([*costs, *seconds.values()]) and are_values(values)):
        return None
    steps, images, flops = (column.to_numpy() for column in costs)
    return CostColumns(steps, images, flops, training_seconds(seconds, table.num_rows))


def _lacks(table: pa.Table) -> bool:
    """Return whether a field of a line has no value."""
    structs = [table[name].combine_chunks() for name in TABLES if name in table.column_names]
    fields = [column for struct in structs for column in fields_of(struct).values()]
    return any(column.null_count for column in (*table.columns, *fields))


def _columns_of(events: Sequence[Event]) -> CostColumns:
    import numpy as np

    def column(name: str) -> np.ndarray:
        return np.array([event.get(name, np.nan) for event in events], dtype=float)

    seconds = [
        sum(event["seconds"].get(phase, 0.0) for phase in TRAINING_PHASES) if "seconds" in event else np.nan
        for event in events
    ]
    steps = np.array([event["step"] for event in events], dtype=np.int64)
    return CostColumns(steps, column("images"), column("flops"), np.array(seconds, dtype=float))
