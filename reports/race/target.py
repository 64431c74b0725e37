"""The targets of a race: the rules as requested, their value in each cell, and the runs' crossings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.errors import UserError
from harness.records.targets import BASELINE, TargetRule, parse_targets, target_value
from reports.race.arms import RaceArm, find_arm
from reports.race.cells import RaceCell
from reports.race.run import RaceRun, cross
from reports.stats.crossing import reachable_target


def requested_rules(target: float | str | None) -> tuple[TargetRule, ...]:
    """Return the rules of a requested target; empty without one."""
    return () if target is None else parse_targets(target)


def targets_of(
    arms: Sequence[RaceArm], runs: Sequence[RaceRun], cells: Sequence[RaceCell], rule: TargetRule | None
) -> dict[str, float | None]:
    """Return the target of each arm, which all arms of a cell share.

    Without a rule it is the lowest value that every finished run of the cell reaches. It is None if no run is
    finished yet, and for a rule relative to an arm that the cell does not have. Raises `UserError` for an arm
    that the race does not have.
    """
    setters = _setters(arms, rule)
    found: dict[str, float | None] = {}
    for cell in cells:
        own = [run for run in runs if run.arm in cell.arms]
        setter = next((label for label in cell.arms if label in setters), cell.baseline)
        setter = None if setters and setter not in setters else setter
        value = reachable_by_all(own) if rule is None else _value(rule, own, setter)
        found |= dict.fromkeys(cell.arms, value)
    return found


def cross_all(runs: Sequence[RaceRun], targets: Mapping[str, float | None]) -> list[RaceRun]:
    """Return the runs with their crossings of their arm's target."""
    return [cross(run, targets[run.arm]) for run in runs]


def reachable_by_all(runs: Sequence[RaceRun]) -> float | None:
    """Return the lowest target that every finished run reaches; None if no run is finished."""
    curves = [run.curve for run in runs if run.done]
    return reachable_target(curves) if curves else None


def _setters(arms: Sequence[RaceArm], rule: TargetRule | None) -> set[str]:
    """Return the labels of the arms that a rule names; empty if it names the baseline, or none."""
    if rule is None or rule.arm == BASELINE:
        return set()
    exact = {arm.label for arm in arms if rule.arm in (arm.label, arm.name)}
    found = exact or {arm.label for arm in arms if arm.method == rule.arm}
    return found or {find_arm(arms, rule.arm, "arm of the target").label}


def _value(rule: TargetRule, runs: Sequence[RaceRun], setter: str | None) -> float | None:
    done = [run for run in runs if run.arm == setter and run.done]
    if rule.relative and (lost := sum(not run.complete for run in done)):
        raise UserError(
            f"target {rule} needs the runs of {setter} to their last step, but {lost} ended early; give a "
            "number, or continue them with flowrace extend"
        )
    return target_value(rule, [(run.curve.steps, run.curve.fitted) for run in done])
