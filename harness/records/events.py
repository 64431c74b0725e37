"""The events of a run: `events.jsonl` parsed, and checked for completeness once the run is done."""

from __future__ import annotations

import contextlib
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
    return _parsed(file, read_content(file))


def read_finished(file: Path, steps: int | None) -> list[Event]:
    """Return the events of a finished run, which evaluates at its last step (`steps`, None if unknown).

    Raises `UserError` also if the end of the file is missing.
    """
    content = read_content(file)
    events = _parsed(file, content)
    evaluated = max((event["step"] for event in events if event["kind"] == "eval"), default=0)
    check_finished(file, content, evaluated, events[-1] if events else None, steps)
    return events


def check_finished(file: Path, content: bytes, evaluated: int, last: Event | None, steps: int | None) -> None:
    """Raise `UserError` if the end of a finished run, evaluated up to a step, is missing."""
    if not content.endswith(b"\n") or (steps is not None and evaluated < steps):
        raise _cut_short(file, last, steps)


def _cut_short(file: Path, last: Event | None, steps: int | None) -> UserError:
    of = "" if steps is None else f" of {steps}"
    end = f"its last complete line has step {last['step']}{of}" if last else "it has no events"
    return UserError(
        f"{file} is cut short: {end}, but the run is marked as done. Restore the file; or delete `done` and "
        "the checkpoints that the file does not mention, and rerun"
    )


def read_content(file: Path) -> bytes:
    """Return the bytes of a file, empty without one. Raises `UserError` if it cannot be read."""
    try:
        return file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error


def _parsed(file: Path, content: bytes) -> list[Event]:
    return events_in(file, content.split(b"\n")[:-1])


def events_in(file: Path, lines: Sequence[bytes]) -> list[Event]:
    """Return the events of a file's lines. Raises `UserError` if a line is not an event."""
    events = parse_lines(lines)
    if events is not None:
        return events
    return [_event(file, number, line) for number, line in enumerate(lines, start=1)]


def parse_lines(lines: Sequence[bytes]) -> list[Event] | None:
    """Return the events of lines, None if one is not an event."""
    # One call for all lines takes half the time, and half the memory, because events then share their keys.
    try:
        events = json.loads(b"[" + b",".join(lines) + b"]")
    except (ValueError, RecursionError):
        return None
    return events if len(events) == len(lines) and not any(map(event_fault, events)) else None


def _event(file: Path, number: int, line: bytes) -> Event:
    # Any: a line may hold any JSON value.
    event: Any = None
    with contextlib.suppress(ValueError):
        event = parse_json(line)
    if fault := event_fault(event):
        raise UserError(f"{file} line {number} {fault}")
    return event
