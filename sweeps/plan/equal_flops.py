"""The number of steps of each run of a study that gives every run the same FLOPs (`budget.flops_per_run`).

FLOPs are those of the training: student, teacher, encoder, optimizer and EMA. A run has the steps that fit,
so it is less than one step short of the budget, and an arm whose steps cost less has more of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Any: a value on an axis.
from typing import Any

from harness.config.spec import RunSpec
from harness.errors import UserError
from sweeps.plan.run_cost import endless_cost, run_cost, steps_within
from sweeps.plan.study import Study, run_label


def with_equal_flops(
    study: Study, runs: Sequence[tuple[Mapping[str, Any], RunSpec]]
) -> list[tuple[Mapping[str, Any], RunSpec]]:
    """Return runs, given by their values on the axes and their specs, with the steps that the budget gives.

    Without `budget.flops_per_run` they keep theirs. Raises `UserError` for a budget of less than one step,
    for a run without the baseline that sets its budget, and for a schedule to the last step in several cells.
    """
    if study.budget.flops_per_run is None:
        return list(runs)
    _check_schedules(study, runs)
    budgets = _budgets(study, runs)
    return [(values, _with_steps(study, values, spec, budgets[_cell(values)])) for values, spec in runs]


def _with_steps(study: Study, values: Mapping[str, Any], spec: RunSpec, flops: float) -> RunSpec:
    cost = endless_cost(spec)
    steps = steps_within(cost, flops)
    if steps < max(1, spec.start.step):
        label = run_label({"method.name": spec.method.name} | dict(values))
        raise UserError(
            f"study {study.name}: budget.flops_per_run = {study.budget.flops_per_run} ({flops:.3g} FLOPs) is "
            f"too small for {label}, of which one step costs {cost.step:.3g}; raise it"
        )
    return spec.model_copy(update={"train": spec.train.model_copy(update={"steps": steps})})


def _check_schedules(study: Study, runs: Sequence[tuple[Mapping[str, Any], RunSpec]]) -> None:
    """Raise `UserError` if steps belong to the conditions of runs, which would set cells apart by them."""
    cells = {_cell(values) for values, _ in runs}
    scheduled = next((spec.horizon for _, spec in runs if spec.horizon), "")
    if scheduled and len(cells) > 1:
        raise UserError(
            f"study {study.name}: budget.flops_per_run gives runs different steps, and {scheduled} makes "
            "steps a condition of a run, so arms of several cells could not be compared; leave out one of "
            "the two, or the axes other than the method"
        )


def _budgets(study: Study, runs: Sequence[tuple[Mapping[str, Any], RunSpec]]) -> dict[str, float]:
    """Return the FLOPs of a run by its cell: a number, or those of the baseline's run in the cell."""
    per_run, others = study.budget.flops_per_run, {_cell(values): _of_cell(values) for values, _ in runs}
    if isinstance(per_run, float):
        return dict.fromkeys(others, per_run)
    baselines: dict[str, RunSpec] = {}
    for values, spec in runs:
        if spec.method.name == study.baseline:
            baselines.setdefault(_cell(values), spec)
    for cell, axes in others.items():
        if cell not in baselines:
            where = ", ".join(f"{path} = {value}" for path, value in axes.items())
            raise UserError(
                f"study {study.name}: budget.flops_per_run = 'baseline' needs a run of the baseline "
                f"{study.baseline or '(none is named)'}{f' with {where}' if where else ''}; give a number of "
                "FLOPs, or add that run"
            )
    return {cell: run_cost(spec).total for cell, spec in baselines.items()}


def _cell(values: Mapping[str, Any]) -> str:
    """Return a key of an arm's cell. Values may be tables or lists, which have no hash."""
    return repr(sorted(_of_cell(values).items()))


def _of_cell(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of an arm's cell: all but those of the seed and the method."""
    return {
        path: value
        for path, value in values.items()
        if path not in ("seed", "method") and not path.startswith("method.")
    }
