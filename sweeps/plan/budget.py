"""Counted FLOPs of planned runs, and the budget that a study sets for them."""

from __future__ import annotations

from collections.abc import Sequence

from harness.errors import UserError
from sweeps.plan.plan import PlannedRun
from sweeps.plan.run_cost import run_cost
from sweeps.plan.study import Study


def check_budget(study: Study, runs: Sequence[PlannedRun]) -> None:
    """Raise `UserError` if the runs cost more counted FLOPs than `budget.flops`; count nothing without a
    budget."""
    if study.budget.flops is None:
        return
    planned = sum(count_flops(runs).values())
    if planned > study.budget.flops:
        raise UserError(
            f"study {study.name} plans {planned:.4g} FLOPs, more than its "
            f"budget.flops = {study.budget.flops:.4g}; remove runs, shorten them, or "
            "raise the budget in the study. See: flowrace sweep ... --dry-run"
        )


def count_flops(runs: Sequence[PlannedRun]) -> dict[str, int]:
    """Return the counted FLOPs of every run by id."""
    return {run.id: run_cost(run.spec).total for run in runs}
