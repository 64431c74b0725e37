"""The section on attributes of captions: who learns which of them first, and by how much."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from reports.analysis.report import RaceReport
from reports.pages import tables
from reports.pages.section import render_template
from reports.race.by_attribute import AttributeRace
from reports.race.verdict import goal

AXIS = "steps"


def attribute_section(report: RaceReport) -> Markup | None:
    """Return the section; None if no metric of attributes was recorded at two or more steps."""
    found = report.by_attribute
    if not found:
        return None
    rule = found[0].race.rule
    return render_template(
        "attributes",
        report.race,
        rows=[_row(one) for one in found],
        count=sum(len(one.race.speedups) // len(one.race.axes) for one in found),
        how_found="" if rule is None else rule.described(report.race.baseline_objective),
    )


def _row(one: AttributeRace) -> dict[str, Any]:
    arms = {texts["method"]: texts for texts in tables.axis_texts(one.race, AXIS)}
    counted = "" if one.samples is None else f"n = {one.samples:,}"
    return {
        "attribute": one.attribute,
        "goal": goal(one.race),
        "samples": counted,
        "arms": [arms.get(arm.label) for arm in one.race.arms],
    }
