"""Questions to trained runs: which metrics, under which guidance, at which steps. They train nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.spec import RunSpec
from harness.errors import UserError
from harness.records.checkpoint_files import step_of, weights_files
from harness.records.evaluations import Conditions, belongs
from harness.records.record import Record
from harness.records.run_targets import targets_of_run
from harness.records.study_folder import StudyFolder
from harness.train.later_evaluations import lacking
from harness.train.replicates import Wanted, bracket_steps
from harness.train.trained_run import checkpoint_of_run, spec_of_run

STEPS = ("all", "last", "around-target")


@dataclass(frozen=True)
class Question:
    """An evaluation to be read from a run's record, or to be measured if the record lacks it."""

    metrics: tuple[str, ...] = ()
    """Empty for the metrics of the run's spec."""
    guidance: tuple[float, ...] = ()
    """Scales of guidance, each of them one set of conditions; empty for those of the spec."""
    steps: str = ""
    """One of `STEPS`, or steps separated by commas; empty for all steps if metrics or guidance are given, and
    for the last step otherwise."""
    overrides: tuple[str, ...] = ()

    def specs(self, run: Path) -> list[RunSpec]:
        """Return the spec of a run for each set of conditions."""
        metrics = [f"eval.metrics={list(self.metrics)}"] if self.metrics else []
        scales = [[f"eval.guidance={scale}"] for scale in self.guidance] or [[]]
        specs = [spec_of_run(run, (*self.overrides, *metrics, *scale)) for scale in scales]
        return [one for spec in specs for one in spec.by_guidance]

    def steps_of(self, run: Path) -> list[int]:
        """Return the steps to be evaluated; raises `UserError` for steps whose weights were not kept."""
        asked = self.steps or ("all" if self.metrics or self.guidance else "last")
        record, kept = Record(run), list(weights_files(run))
        if asked == "last":
            return [step_of(checkpoint_of_run(run, None))]
        if asked == "all":
            return _evaluated(record, kept)
        if asked == "around-target":
            return _around_target(record)
        return [step_of(checkpoint_of_run(run, step)) for step in parse_steps(asked)]

    def missing(self, run: Path) -> int:
        """Return the number of values that the record of a run lacks."""
        steps, record = self.steps_of(run), Record(run)
        found = [lacking(record, spec.eval, steps) for spec in self.specs(run)]
        return sum(len(metrics) for by_step in found for metrics in by_step.values())

    def answers(self, run: Path) -> list[dict[str, Any]]:
        """Return the recorded answers as JSON data: step, conditions, metrics and protocol."""
        record, steps, kept = Record(run), self.steps_of(run), weights_files(run)
        found = []
        for spec in self.specs(run):
            for conditions in _matching(record, spec):
                events = {event["step"]: event for event in record.under(conditions).of("eval")}
                rows = [
                    {"checkpoint": kept[step].name, **_answer(events[step], conditions, spec)}
                    for step in steps
                    if step in events
                ]
                found += [row for row in rows if row["metrics"] or "errors" in row]
        return found


def parse_steps(text: str) -> list[int]:
    """Return the steps in a text such as `400,800`; raises `UserError` for any other text."""
    try:
        return [int(step) for step in text.split(",")]
    except ValueError:
        raise UserError(
            f"--steps {text}: expected all, last, around-target, or steps such as 400,800"
        ) from None


def _matching(record: Record, spec: RunSpec) -> Sequence[Conditions]:
    """Return the recorded conditions of a spec, with weights that were kept in either precision."""
    section = spec.eval.model_dump()
    return [conditions for conditions in record.views if conditions.is_of_spec(section)]


def _answer(event: dict[str, Any], conditions: Conditions, spec: RunSpec) -> dict[str, Any]:
    recorded = event["metrics"]
    # A metric may also have values by time or part, for example loss:held_out@0.125.
    metrics = {own: recorded[own] for name in spec.eval.metrics for own in recorded if belongs(own, name)}
    errors = {name: why for name, why in event.get("errors", {}).items() if name in spec.eval.metrics}
    return {
        "step": event["step"],
        "conditions": conditions.as_dict(),
        "metrics": metrics,
        "protocol": event["protocol"],
        **({"errors": errors} if errors else {}),
    }


def _evaluated(record: Record, kept: Sequence[int]) -> list[int]:
    """Return the kept steps that were evaluated; a checkpoint of a stop is not one of them."""
    steps = {one.step for one in record.evaluations}
    found = [step for step in kept if step in steps]
    if not found:
        raise UserError(f"{record.path} keeps no weights of an evaluated step; its checkpoints were deleted")
    return found


def _around_target(record: Record) -> list[int]:
    settings = StudyFolder(record.path.parent).settings
    if settings.metric is None or not settings.rules_of(settings.metric):
        raise UserError(f"--steps around-target: {record.path} belongs to no study with a target; give steps")
    metric, values = targets_of_run(record)
    return sorted({step for value in values for step in bracket_steps(record, Wanted(metric, value))})
