"""The state of planned runs, read from their folders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.spec import RunSpec
from harness.files.files import read_tail
from harness.files.parse import parse_json
from harness.records.record import EVENTS, Record
from harness.records.shapes import event_fault
from harness.train.extension import ends_by
from harness.train.later_evaluations import missing_evaluations
from sweeps.plan.plan import PlannedRun

TO_EXTEND, TO_EVALUATE = "to extend", "to evaluate"


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
    """One of `Record.status`: missing, running, stopped, failed or done; or of a finished run: TO_EXTEND, if
    the study has more steps or the run ended early by another rule, or TO_EVALUATE, if the study evaluates
    what its record lacks."""
    step: int
    unmeasured: int = 0
    """Number of missing evaluations of kept weights."""

    @property
    def is_trained(self) -> bool:
        return self.status in ("done", TO_EVALUATE)


def read_state(run: PlannedRun, directory: Path) -> RunState:
    """Return the state of a run of the study in a folder."""
    record = Record(directory / run.id)
    status, step = record.status, read_step(record.path)
    if status != "done":
        return RunState(run, status, step)
    # A run can be longer than this study asks.
    steps = max(run.spec.train.steps, record.steps or 0)
    early = record.early_end is not None and not ends_by(record, run.end)
    if early or steps > (record.steps or steps):
        return RunState(run, TO_EXTEND, step)
    asked = [one for spec in run.variants for one in _with_steps(spec, steps).by_guidance]
    unmeasured = sum(len(missing_evaluations(record.path, one)) for one in asked)
    return RunState(run, TO_EVALUATE if unmeasured else status, step, unmeasured)


def _with_steps(spec: RunSpec, steps: int) -> RunSpec:
    return spec.model_copy(update={"train": spec.train.model_copy(update={"steps": steps})})


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


def read_step(run: Path) -> int:
    """Return the step of `read_pace`, for which fewer lines are read."""
    last = 0
    for event in _last_events(run / EVENTS, newest_first=True):
        if event["kind"] == "train":
            return event["step"]
        last = last or event["step"]
    return last


def _seconds(event: dict[str, Any]) -> float:
    return sum(event.get("seconds", {}).values())


def _last_events(file: Path, *, newest_first: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the complete events in the last bytes of a record that may be growing."""
    for line in read_tail(file).split(b"\n")[:-1][:: -1 if newest_first else 1]:
        # The first line may be the end of a longer one.
        try:
            event = parse_json(line)
        except ValueError:
            continue
        if not event_fault(event):
            yield event
