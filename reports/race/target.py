"""The targets of a race: the rules as requested, their value in each cell, and the runs' crossings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.records.targets import TargetRule, parse_targets, target_value
from reports.race.cells import RaceCell
from reports.race.run import RaceRun, cross
from reports.stats.curves import reachable_target


def requested_rules(target: float | str | None) -> tuple[TargetRule, ...]:
    """Return the rules of a requested target; empty without one."""
    return () if target is None else parse_targets(target)


def targets_of(
    runs: Sequence[RaceRun], cells: Sequence[RaceCell], rule: TargetRule | None
) -> dict[str, float | None]:
    """Return the target of each arm, which all arms of a cell share.

    Without a rule it is the lowest value that every finished run of the cell reaches. It is None if no run is
    finished yet, and for a rule relative to a baseline that the cell does not have.
    """
    found: dict[str, float | None] = {}
    for cell in cells:
        own = [run for run in runs if run.arm in cell.arms]
        value = reachable_by_all(own) if rule is None else _value(rule, own, cell.baseline)
        found |= dict.fromkeys(cell.arms, value)
    return found


def cross_all(runs: Sequence[RaceRun], targets: Mapping[str, float | None]) -> list[RaceRun]:
    """Return the runs with their crossings of their arm's target."""
    return [cross(run, targets[run.arm]) for run in runs]


def reachable_by_all(runs: Sequence[RaceRun]) -> float | None:
    """Return the lowest target that every finished run reaches; None if no run is finished."""
    curves = [run.curve for run in runs if run.done]
    return reachable_target(curves) if curves else None


def _value(rule: TargetRule, runs: Sequence[RaceRun], baseline: str | None) -> float | None:
    done = [run for run in runs if run.arm == baseline and run.done]
    return target_value(rule, [(run.curve.steps, run.curve.fitted) for run in done])
