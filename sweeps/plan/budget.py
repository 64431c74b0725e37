"""Counted FLOPs of planned runs, and the budget that a study sets for them."""

from __future__ import annotations

from collections.abc import Sequence

from harness.errors import UserError
from sweeps.plan.plan import PlannedRun, make_plan
from sweeps.plan.pretraining import stages
from sweeps.plan.run_cost import run_cost
from sweeps.plan.study import Study


def check_budget(study: Study, runs: Sequence[PlannedRun]) -> None:
    """Raise `UserError` if the runs cost more counted FLOPs than `budget.flops`; count nothing without a
    budget. Runs of the stages before the study count too."""
    if study.budget.flops is None:
        return
    earlier = [run for stage in stages(study) for run in make_plan(stage).runs]
    planned = sum(count_flops([*earlier, *runs]).values())
    if planned > study.budget.flops:
        both = " with its first stage" if earlier else ""
        raise UserError(
            f"study {study.name} plans {planned:.4g} FLOPs{both}, more than its "
            f"budget.flops = {study.budget.flops:.4g}; remove runs, shorten them, or "
            "raise the budget in the study. See: flowrace sweep ... --dry-run"
        )


def count_flops(runs: Sequence[PlannedRun]) -> dict[str, int]:
    """Return the counted FLOPs of every run by id."""
    return {run.id: run_cost(run.spec).total for run in runs}
