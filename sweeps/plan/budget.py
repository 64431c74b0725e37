"""What a study may cost in all: its plan is counted and refused beyond that, before anything starts."""

from __future__ import annotations

from collections.abc import Sequence

from harness.config.spec import RunSpec, canonical
from harness.errors import UserError
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


def count_flops(cells: Sequence[Cell]) -> dict[str, int]:
    """Counted FLOPs of every run by id; runs with one arithmetic (other seeds, other rates) are counted once."""
    from harness.costs.flops import count_spec

    counted: dict[tuple[object, ...], int] = {}
    flops = {}
    for cell in cells:
        arithmetic = _arithmetic(cell.spec)
        if arithmetic not in counted:
            counted[arithmetic] = count_spec(cell.spec).total
        flops[cell.id] = counted[arithmetic]
    return flops


def _arithmetic(spec: RunSpec) -> tuple[object, ...]:
    """What the number of a run's FLOPs is a function of."""
    return (
        *map(canonical, (spec.data, spec.backbone, spec.method)),
        spec.train.batch_size,
        spec.train.steps,
    )
