"""The section on sets of conditions: whether another guidance, sampler or n changes the ranking of arms."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from reports.analysis.report import RaceReport
from reports.pages import tables
from reports.pages.section import render_template
from reports.race.views import RankedArm, flips_of, resolved_alike, same_order, varying_settings
from reports.stats.means import Mean
from reports.stats.number_format import digits


def conditions_section(report: RaceReport) -> Markup | None:
    """Return the section; None if the runs were evaluated under a single set of conditions."""
    views = report.views
    if len(views) < 2:
        return None
    panes = [
        {
            "name": view.name,
            "protocol": view.race.protocol,
            "goal": under.goal,
            "headline": under.headline,
            "reference": view.race.reference,
            "cells": {axis: tables.axis_texts(view.race, axis) for axis in view.race.axes},
        }
        for view, under in zip(views, report.under_views, strict=True)
    ]
    rows = [
        {"arm": arm.label, "ranks": [_texts(view.ranking.get(arm.label)) for view in views]}
        for arm in report.race.arms
    ]
    return render_template(
        "conditions",
        report.race,
        question=question(report),
        answer=answer(report),
        names=[view.name for view in views],
        rows=rows,
        panes=panes,
    )


def ranking_changes(report: RaceReport) -> str:
    """Return question and answer; empty if the runs were evaluated under a single set of conditions."""
    return f"{question(report)} {answer(report)}" if len(report.views) > 1 else ""


def question(report: RaceReport) -> str:
    """Return the title, for example `Does guidance change the ranking?`."""
    return f"Does {varying_settings(report.race)} change the ranking?"


def answer(report: RaceReport) -> str:
    """Return the answer in one sentence; an order counts if the interval of its paired difference is on one
    side of 0."""
    views, flips = report.views, flips_of(report.views)
    if flips:
        texts = [
            f"{f.first} is better than {f.second} under {f.better}, and worse under {f.worse}" for f in flips
        ]
        return f"Yes: {'; '.join(texts)}. The intervals of these paired differences exclude 0."
    if same_order(views):
        resolved, pairs = resolved_alike(views)
        alike = f"all {len(views)} sets of conditions rank the arms in the same order"
        if not resolved and pairs:
            return (
                f"Unresolved: {alike}, but no two arms differ beyond the interval of their paired difference "
                "under each of them."
            )
        beyond = f", and the intervals of {resolved} of {pairs} paired differences exclude 0 under each"
        return f"Not here: {alike}{beyond if pairs else ''}."
    return (
        "Unresolved: the order of the means differs between conditions, but no two arms change places beyond "
        "the intervals of their paired differences."
    )


def _texts(arm: RankedArm | None) -> dict[str, Any] | None:
    if arm is None:
        return None
    about = f"step {arm.step:,.0f}, n = {arm.value.n}"
    return {
        "rank": arm.rank,
        "value": _mean(arm.value),
        "about": about,
        "difference": "" if arm.difference is None else _mean(arm.difference, signed=True),
    }


def _mean(mean: Mean, *, signed: bool = False) -> str:
    sign = "+" if signed and mean.mean > 0 else ""
    ends = "" if mean.low is None or mean.high is None else f" [{digits(mean.low)}, {digits(mean.high)}]"
    return f"{sign}{digits(mean.mean)}{ends}".replace("-", "−")
