"""What a study may cost in all: its plan is counted and refused beyond that, before anything starts."""

from __future__ import annotations

from collections.abc import Sequence

from harness.errors import UserError
from sweeps.cli.tables import count_flops
from sweeps.plan.plan import Cell
from sweeps.plan.study import Study


def check_budget(study: Study, cells: Sequence[Cell]) -> None:
    """Raises `UserError` where a plan's counted FLOPs are beyond `budget.flops`; a study without one is not counted."""
    if study.budget.flops is None:
        return
    planned = sum(count_flops(cells).values())
    if planned > study.budget.flops:
        raise UserError(
            f"study {study.name} plans {planned:.4g} FLOPs, more than its budget.flops = {study.budget.flops:.4g}; "
            "leave runs out or shorten them, or raise the budget in the study. See: flowrace sweep ... --dry-run"
        )
