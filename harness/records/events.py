"""The events of a run: `events.jsonl` parsed, and checked for completeness once the run is done."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files.parse import parse_json
from harness.records.shapes import event_fault

# Any: an event is a JSON object.
Event = dict[str, Any]


def read_events(file: Path) -> list[Event]:
    """Return the complete events of a file, in order; a last line without a line break is left out.

    Raises `UserError` if the file cannot be read, or if a line is not an event.
    """
    return _parsed(file, _content(file))


def read_finished(file: Path, steps: int | None) -> list[Event]:
    """Return the events of a finished run, which evaluates at its last step (`steps`, None if unknown).

    Raises `UserError` also if the end of the file is missing.
    """
    content = _content(file)
    events = _parsed(file, content)
    evaluated = max((event["step"] for event in events if event["kind"] == "eval"), default=0)
    if not content.endswith(b"\n") or (steps is not None and evaluated < steps):
        raise _cut_short(file, events, steps)
    return events


def _cut_short(file: Path, events: Sequence[Event], steps: int | None) -> UserError:
    of = "" if steps is None else f" of {steps}"
    end = f"its last complete line has step {events[-1]['step']}{of}" if events else "it has no events"
    return UserError(
        f"{file} is cut short: {end}, but the run is marked as done. Restore the file; or delete `done` and "
        "the checkpoints that the file does not mention, and rerun"
    )


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error


def _parsed(file: Path, content: bytes) -> list[Event]:
    # One call for all lines takes half the time, and half the memory, because events then share their keys.
    lines = content.split(b"\n")[:-1]
    try:
        events = json.loads(b"[" + b",".join(lines) + b"]")
    except (ValueError, RecursionError):
        events = []
    if len(events) == len(lines) and not any(map(event_fault, events)):
        return events
    return [_event(file, number, line) for number, line in enumerate(lines, start=1)]


def _event(file: Path, number: int, line: bytes) -> Event:
    # Any: JSON, whose structure is checked below.
    event: Any
    try:
        event = parse_json(line)
    except ValueError:
        event = None
    if fault := event_fault(event):
        raise UserError(f"{file} line {number} {fault}")
    return event
