"""The cells of a race: the sets of arms that differ only in their objective, each with its own baseline.

A *cell* is everything in a spec except the objective and the seed. An *objective* is the method with its
fields, and with whatever else was chosen for it, for example a learning rate. Fields with one value per
method distinguish objectives, fields with several values for a method distinguish cells. Speed-ups compare
an arm with the baseline of the same cell, never with that of another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.errors import UserError
from harness.records.targets import OBJECTIVE
from reports.race.arms import (
    RaceArm,
    differing_paths,
    find_arm,
    label_paths,
    labels_of,
    setting,
    shown_labels,
)


@dataclass(frozen=True)
class RaceCell:
    """Arms that are compared with each other."""

    label: str
    """The fields that distinguish it from other cells; empty if there is one."""
    arms: tuple[str, ...]
    """Labels; the baseline first, if there is one."""
    baseline: str | None
    """None if no arm of the cell has the baseline's objective."""


def split_arms(
    arms: Sequence[RaceArm], names: Mapping[str, str] | None = None
) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Return, by arm label, the label of its objective and the fields of its cell."""
    different = [
        path for path in differing_paths(arm.fields for arm in arms) if not path.startswith(OBJECTIVE)
    ]
    varied = label_paths(different, {arm.label: arm.fields for arm in arms})
    methods: dict[str, list[RaceArm]] = {}
    for arm in arms:
        methods.setdefault(repr(_of_method(arm)), []).append(arm)
    # Fields with one value for each method belong to the objective.
    chosen = [
        path
        for path in varied
        if not any(differing_paths({path: arm.fields.get(path)} for arm in same) for same in methods.values())
    ]
    if len(methods) == 1:
        chosen = []
    objectives = {
        arm.label: _of_method(arm) | {path: arm.fields[path] for path in chosen if path in arm.fields}
        for arm in arms
    }
    cells = {
        arm.label: {path: arm.fields[path] for path in varied if path not in chosen and path in arm.fields}
        for arm in arms
    }
    return shown_labels(labels_of(objectives), objectives, names or {}), cells


def cells_of(arms: Sequence[RaceArm], names: Mapping[str, str] | None = None) -> tuple[RaceCell, ...]:
    """Return the cells in order of these arms, of which the first is the baseline.

    With a single objective its arms are compared with each other, in one cell.
    """
    objectives, fields = split_arms(arms, names)
    if len(set(objectives.values())) == 1:
        return (RaceCell("", tuple(arm.label for arm in arms), arms[0].label),)
    groups: dict[str, list[str]] = {}
    for arm in arms:
        groups.setdefault(cell_label(fields[arm.label]), []).append(arm.label)
    base = objectives[arms[0].label]
    return tuple(_cell(label, group, objectives, base) for label, group in groups.items())


def cell_label(fields: Mapping[str, Any]) -> str:
    """Return the label of a cell: its fields, for example `backbone.size = S`."""
    return ", ".join(setting(path, value) for path, value in fields.items())


def natural_baseline(labels: Sequence[str], methods: Sequence[str], option: str = "--baseline") -> str:
    """Return the baseline of a race that declares none: `flow`, or the only arm.

    `methods` has the method of each label. Raises `UserError` if there are several arms and none is of flow.
    """
    if "flow" in methods:
        return "flow"
    if len(labels) == 1:
        return labels[0]
    raise undeclared_baseline(labels, option)


def undeclared_baseline(labels: Sequence[str], option: str = "--baseline") -> UserError:
    """Return the error of several arms of which none is declared or natural as the baseline."""
    names = "; ".join(f"'{label}'" for label in labels)
    return UserError(f"no baseline is declared among several arms ({names}); name one: {option} NAME")


def baseline_first(
    arms: Sequence[RaceArm], requested: str | None, declared: str | None, order: Mapping[str, int]
) -> tuple[list[RaceArm], list[str]]:
    """Return the arms with the baseline first, and notes.

    A requested baseline (`--baseline`) or one that the study declares may be a method with an arm in each
    cell. Of its arms, those from initial weights come before those from a first stage. Other arms of one cell
    need a label; only the plan's order (`order`, by run id) decides between those of a declared method.
    """
    labels = [arm.label for arm in arms]
    name = requested or declared or natural_baseline(labels, [arm.method for arm in arms])
    matching = [arm for arm in arms if name in (arm.label, arm.name)]
    matching = matching or _of_baseline(arms, name) or [find_arm(arms, name)]
    place = {arm.label: min(order.get(run.id, len(order)) for run in arm.runs.values()) for arm in matching}
    base = min(matching, key=lambda arm: place[arm.label])
    objectives, _ = split_arms(arms)
    same_objective = {objectives[arm.label] for arm in matching}
    ambiguous = len(matching) > 1 and (len(same_objective) > 1 or len(set(objectives.values())) == 1)
    notes = []
    if ambiguous and requested is not None:
        find_arm(matching, name)
    if ambiguous and (declared is None or place[base.label] == len(order)):
        raise undeclared_baseline([arm.label for arm in matching])
    if ambiguous:
        notes = [f"Baseline '{name}' matches more than one arm; '{base.label}', the first planned, is used."]
    return [base, *(arm for arm in arms if arm is not base)], notes


def _of_baseline(arms: Sequence[RaceArm], method: str) -> list[RaceArm]:
    """Return the arms of a method, without those that start from a first stage if others do not."""
    own = [arm for arm in arms if arm.method == method]
    return [arm for arm in own if not arm.fields.get("start.arm")] or own


def _cell(label: str, group: Sequence[str], objectives: Mapping[str, str], base: str) -> RaceCell:
    order = sorted(group, key=lambda arm: objectives[arm] != base)
    return RaceCell(label, tuple(order), order[0] if objectives[order[0]] == base else None)


def _of_method(arm: RaceArm) -> dict[str, Any]:
    return {path: value for path, value in sorted(arm.fields.items()) if path.startswith(OBJECTIVE)}
