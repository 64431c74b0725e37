"""The lines of a record: parsed, and, once the run is done, known to be all there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

from harness.errors import UserError

# Any: an event is a JSON object.
Event = dict[str, Any]


def read_events(file: Path) -> list[Event]:
    """Complete events of a file, in order; a last line without an end is left out.

    Raises `UserError` for a file that cannot be read, naming the line where one is not an event.
    """
    return _parsed(file, _content(file))


def read_finished(file: Path, steps: int | None) -> list[Event]:
    """The events of a run that is done; its last step, where it is known, ends with an evaluation.

    Raises `UserError` too where the end of the file is missing.
    """
    content = _content(file)
    events = _parsed(file, content)
    evaluated = max((event["step"] for event in events if event["kind"] == "eval"), default=0)
    if not content.endswith(b"\n") or (steps is not None and evaluated < steps):
        raise _cut_short(file, events, steps)
    return events


def _cut_short(file: Path, events: Sequence[Event], steps: int | None) -> UserError:
    of = "" if steps is None else f" of {steps}"
    end = f"its last whole line is of step {events[-1]['step']}{of}" if events else "it holds no event"
    return UserError(
        f"{file} is cut short: {end}, but the run is done; restore it, or delete `done` and the checkpoints of which it has "
        "no line, and run it again"
    )


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error


def _parsed(file: Path, content: bytes) -> list[Event]:
    """All lines are parsed at once, which takes half the time and, since events then share their keys, half
    the memory."""
    lines = content.split(b"\n")[:-1]
    try:
        events = json.loads(b"[" + b",".join(lines) + b"]")
    except ValueError:
        events = []
    if len(events) == len(lines) and all(map(_is_event, events)):
        return events
    return [_event(file, number, line) for number, line in enumerate(lines, start=1)]


def _event(file: Path, number: int, line: bytes) -> Event:
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if not _is_event(event):
        raise UserError(f"{file} line {number} is not an event (a JSON object with kind and step)")
    return event


# Any: whatever a line of JSON holds.
def _is_event(value: Any) -> TypeGuard[Event]:
    return (
        isinstance(value, dict) and isinstance(value.get("kind"), str) and isinstance(value.get("step"), int)
    )
