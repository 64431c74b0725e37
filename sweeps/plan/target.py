"""The target of a study in its plan: the check of a value of the baseline, and the early end of runs."""

from __future__ import annotations

from collections.abc import Mapping

from harness.config.spec import RunSpec
from harness.errors import UserError, unknown
from harness.records.early_end import PATIENCE, EndRule
from sweeps.plan.study import Study

BASELINE = "baseline"
SHOWN = 8
"""Number of evaluation steps that an error lists in full."""


def check_target_step(study: Study, specs: Mapping[str, RunSpec]) -> None:
    """Raise `UserError` if the target needs a baseline that the study lacks, or a step without an evaluation.

    Specs are given by the label of the run.
    """
    target, named = study.target, study.target.arm_and_step
    if named is None and target.share_of_final is None:
        return
    if named and named[0] != BASELINE:
        raise UserError(
            f"study {study.name}: target.at = {target.at}: a target is a value of the baseline; write "
            f"{BASELINE}@{named[1]}, with {BASELINE} = NAME above the tables of the study"
        )
    if study.baseline is None:
        field = "target.at" if named else "target.share_of_final"
        raise UserError(
            f"study {study.name}: {field} needs a baseline; add a line {BASELINE} = NAME above its tables"
        )
    for label, spec in specs.items():
        if named and spec.method.name == study.baseline and named[1] not in evaluation_steps(spec):
            raise UserError(
                f"study {study.name}: target.at = {target.at}: {label} is not evaluated at step "
                f"{named[1]}, but at {_in_words(evaluation_steps(spec))}; choose one of them, or change "
                "eval.every"
            )


def end_rule(study: Study, spec: RunSpec) -> EndRule | None:
    """Return the rule by which a run of a study ends early; None if it goes to its last step.

    Of several target values, the lowest counts. Raises `UserError` for a run without the target's metric.
    """
    target = study.target
    if not target.ends_early:
        return None
    assert target.metric is not None
    if target.metric not in spec.eval.metrics:
        raise unknown('metric of until = "reached"', target.metric, spec.eval.metrics)
    patience = PATIENCE if target.patience is None else target.patience
    return EndRule(((target.metric, min(target.numbers)),), patience, target.margin or 0.0)


def evaluation_steps(spec: RunSpec) -> list[int]:
    """Return the steps at which a run is evaluated: every `eval.every` steps, and the last."""
    steps, every = spec.train.steps, spec.eval.every
    return [*range(every, steps, every), steps]


def _in_words(steps: list[int]) -> str:
    """Return steps as text, with the middle ones left out if there are many.

    >>> _in_words([10, 20, 30])
    '10, 20, 30'
    """
    if len(steps) <= SHOWN:
        return ", ".join(map(str, steps))
    return f"{', '.join(map(str, steps[: SHOWN - 2]))}, ..., {steps[-1]}"
