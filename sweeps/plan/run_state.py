"""Where the runs of a study stand, read from their folders."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.records.record import EVENTS, Record
from sweeps.plan.plan import Cell

TAIL_BYTES = 16_384


@dataclass(frozen=True)
class Pace:
    """How far a run is and how fast it goes, from the end of its record."""

    step: int = 0
    loss: float | None = None
    steps_per_second: float | None = None


@dataclass(frozen=True)
class Standing:
    cell: Cell
    status: str
    """As `Record.status`: missing, running, stopped, failed or done."""
    step: int

    @property
    def share_left(self) -> float:
        """The share of its training that is still to come."""
        return 0.0 if self.status == "done" else 1 - self.step / self.cell.spec.train.steps


def standing(cell: Cell, directory: Path) -> Standing:
    record = Record(directory / cell.id)
    return Standing(cell, record.status, pace(record.path).step)


def pace(run: Path) -> Pace:
    """Step, loss and steps per second, all phases counted, over the last train events (some dozens)."""
    events = list(_last_events(run / EVENTS))
    trained = [event for event in events if event["kind"] == "train"]
    if not trained:
        return Pace(events[-1]["step"] if events else 0)
    first, last = trained[0], trained[-1]
    seconds = _seconds(last) - _seconds(first)
    rate = (last["step"] - first["step"]) / seconds if seconds > 0 else None
    return Pace(last["step"], last["loss"], rate)


def log_of(directory: Path, run: str) -> Path:
    """Where the output of a run goes."""
    return directory / "logs" / f"{run}.log"


def reason(record: Record, log: Path, code: int | None = None) -> str:
    """Why a run is not done, in one line: its exit by signal, the last line of its log, or what its record says."""
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = _tail(log).decode(errors="replace").strip().splitlines()
    if lines:
        return lines[-1].removeprefix("error: ")
    return str((record.failure or {}).get("reason", f"exit code {code}" if code else "no reason was left"))


def _seconds(event: dict[str, Any]) -> float:
    return sum(event.get("seconds", {}).values())


def _last_events(file: Path) -> Iterator[dict[str, Any]]:
    """The complete events in the last bytes of a record that may be growing."""
    for line in _tail(file).split(b"\n")[:-1]:
        try:
            event = json.loads(line)
        except ValueError:  # the first line may have been cut
            continue
        if isinstance(event, dict) and {"kind", "step"} <= event.keys():
            yield event


def _tail(file: Path) -> bytes:
    try:
        with open(file, "rb") as content:
            content.seek(max(0, content.seek(0, os.SEEK_END) - TAIL_BYTES))
            return content.read()
    except OSError:
        return b""
