"""The counted cost of a run, and the number of steps that fits into FLOPs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.config.section import STEPS
from harness.config.spec import RunSpec, canonical

if TYPE_CHECKING:
    from harness.costs.flops import Cost

_costs: dict[str, Cost] = {}


def run_cost(spec: RunSpec) -> Cost:
    """Return the counted cost of a run.

    Specs that differ only in seeds, rates and the like are counted once.
    """
    from harness.costs.flops import count_spec

    parts = (
        *map(canonical, (spec.data, spec.text, spec.backbone, spec.method, spec.flow, spec.optimizer)),
        spec.train.batch_size,
        spec.start.frozen,
        spec.train.steps,
    )
    key = " ".join(map(str, parts))
    if key not in _costs:
        _costs[key] = count_spec(spec)
    return _costs[key]


def steps_within(cost: Cost, flops: float) -> int:
    """Return the largest number of steps of a run that costs no more than `flops`."""
    low, high = 0, cost.steps
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost.until(middle) <= flops else (low, middle - 1)
    return low


def endless_cost(spec: RunSpec) -> Cost:
    """Return the cost of a run that goes on as long as a run can."""
    return run_cost(spec.model_copy(update={"train": spec.train.model_copy(update={"steps": STEPS})}))
