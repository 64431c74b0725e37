"""How far a run shall go, and what an extension changes in its directory."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from harness.config.spec import RunSpec
from harness.errors import UserError
from harness.records.checkpoint_files import CHECKPOINTS, EMA, checkpoints, path_of, step_of
from harness.records.early_end import EndRule
from harness.records.events import Event
from harness.records.record import DONE, Record


class Goal(NamedTuple):
    """The spec of a start, with the number of steps to reach, and the state of its directory before it."""

    path: Path
    spec: RunSpec
    reached: int
    """Step of the newest checkpoint, 0 without one."""
    recorded: int | None
    """Number of steps that the directory's spec asks for; None for a new run."""
    done: bool
    """True if the run has reached `recorded`."""
    ends: frozenset[int] = frozenset()
    """Numbers of steps that earlier starts asked for."""
    rule: EndRule | None = None
    """The rule of an early end."""

    @property
    def finished(self) -> bool:
        """True if nothing is left to train."""
        if self.imported and self.reached == 0:
            # The weights are all that there is: the run is as long as its import until it is extended.
            return self.spec.train.steps <= max(1, self.spec.start.step)
        return self.done and self.recorded is not None and self.recorded >= self.spec.train.steps

    @property
    def imported(self) -> bool:
        """Return whether flowrace import wrote the directory."""
        start = self.spec.start
        return bool(start.weights) and path_of(self.path / EMA, start.step).exists()

    @property
    def extends(self) -> bool:
        """True if a finished run shall go further."""
        return self.done and not self.finished

    def is_kept(self, event: Event) -> bool:
        """Return whether an unbroken run to the new last step would have this event.

        The end of a shorter run is logged, evaluated and saved whether or not its step is due.
        """
        train, step = self.spec.train, event["step"]
        every = {
            "train": train.log_every,
            "eval": self.spec.eval.every,
            "checkpoint": train.checkpoint_every,
        }.get(event["kind"], 1)
        return step not in self.ends or step == train.steps or step % every == 0


def goal_of(path: Path, spec: RunSpec, rule: EndRule | None = None) -> Goal:
    """Compare a spec with the run in a directory.

    A finished run that is asked for fewer steps keeps its length, and one that is past the requested steps
    ends at its newest checkpoint. A run that ended early is finished if `rule` ends it too, within the same
    budget. Raises `UserError` for a longer run without any checkpoint.
    """
    record = Record(path)
    files = checkpoints(path / CHECKPOINTS)
    reached = step_of(files[-1]) if files else 0
    if record.status == "missing":
        if spec.start.weights and spec.train.steps <= spec.start.step:
            raise UserError(
                f"train.steps = {spec.train.steps}, but the imported weights are those of step "
                f"{spec.start.step}: give more steps, for example with flowrace extend --steps"
            )
        return Goal(path, spec, reached, None, done=False, rule=rule)
    recorded = int(record.spec.get("train", {}).get("steps", spec.train.steps))
    early = record.early_end
    ended = early is None or (spec.train.steps <= recorded and ends_by(record, rule))
    done = (path / DONE).exists() and ended
    steps = max(spec.train.steps, recorded if done else reached)
    if done and spec.train.steps > recorded > reached == 0:
        raise UserError(
            f"{path} cannot continue from step {recorded} to {spec.train.steps}: its checkpoint of step "
            f"{recorded} was deleted, and no earlier one is left. Restore it, or train from the start with "
            "another --out"
        )
    spec = spec.model_copy(update={"train": spec.train.model_copy(update={"steps": steps})})
    ends = frozenset({recorded, *(start["steps"] for start in record.environment if "steps" in start)})
    return Goal(path, spec, reached, recorded, done, ends, rule)


def ends_by(record: Record, rule: EndRule | None) -> bool:
    """Return whether a rule ends a run at an evaluation that its training has recorded under its current
    conditions."""
    return rule is not None and rule.end_of(record.trained_evaluations) is not None
