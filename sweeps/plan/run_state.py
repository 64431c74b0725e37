"""The state of planned runs, read from their folders."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.files.files import read_tail
from harness.records.record import EVENTS, Record
from sweeps.plan.plan import PlannedRun


@dataclass(frozen=True)
class Pace:
    """Progress and speed of a run, from the end of its record."""

    step: int = 0
    loss: float | None = None
    steps_per_second: float | None = None


@dataclass(frozen=True)
class RunState:
    """A planned run with its status and its last step."""

    run: PlannedRun
    status: str
    """One of `Record.status`: missing, running, stopped, failed or done."""
    step: int

    @property
    def remaining_fraction(self) -> float:
        """The fraction of the training steps that remain."""
        return 0.0 if self.status == "done" else 1 - self.step / self.run.spec.train.steps


def read_state(run: PlannedRun, directory: Path) -> RunState:
    """Return the state of a run of the study in a folder."""
    record = Record(directory / run.id)
    return RunState(run, record.status, read_pace(record.path).step)


def read_pace(run: Path) -> Pace:
    """Return step, loss and steps per second over the last few dozen train events.

    The speed counts the seconds of all phases.
    """
    events = list(_last_events(run / EVENTS))
    trained = [event for event in events if event["kind"] == "train"]
    if not trained:
        return Pace(events[-1]["step"] if events else 0)
    first, last = trained[0], trained[-1]
    seconds = _seconds(last) - _seconds(first)
    rate = (last["step"] - first["step"]) / seconds if seconds > 0 else None
    return Pace(last["step"], last["loss"], rate)


def _seconds(event: dict[str, Any]) -> float:
    return sum(event.get("seconds", {}).values())


def _last_events(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the complete events in the last bytes of a record that may be growing."""
    for line in read_tail(file).split(b"\n")[:-1]:
        # The first line may be the end of a longer one.
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and {"kind", "step"} <= event.keys():
            yield event
