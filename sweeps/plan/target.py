"""The check of a target that is the value of an arm at a step."""

from __future__ import annotations

from collections.abc import Mapping

from harness.config.spec import RunSpec
from harness.errors import UserError, unknown
from sweeps.plan.study import Study

BASELINE = "baseline"
SHOWN = 8
"""Number of evaluation steps that an error lists in full."""


def check_target_step(study: Study, specs: Mapping[str, RunSpec]) -> None:
    """Raise `UserError` if the target needs an arm that the study lacks, or a step without an evaluation.

    Specs are given by the label of the run.
    """
    named = study.target.arm_and_step
    arm = named[0] if named else BASELINE
    if named is None and study.target.share_of_final is None:
        return
    field = "target.at" if named else "target.share_of_final"
    if arm == BASELINE and study.baseline is None:
        raise UserError(
            f"study {study.name}: {field} needs a baseline; add a line baseline = NAME above its tables"
        )
    method = str(study.baseline) if arm == BASELINE else arm.partition(" ")[0]
    methods = {spec.method.name for spec in specs.values()}
    if method not in methods:
        raise unknown(f"arm in target.at of study {study.name}:", arm, {BASELINE, *methods})
    for label, spec in specs.items():
        if named and spec.method.name == method and named[1] not in evaluation_steps(spec):
            raise UserError(
                f"study {study.name}: target.at = {study.target.at}: {label} is not evaluated at step "
                f"{named[1]}, but at {_in_words(evaluation_steps(spec))}; choose one of them, or change "
                "eval.every"
            )


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
