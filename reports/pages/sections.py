"""The sections that every race has: the verdict, its curves, its times and costs, its samples and runs."""

from __future__ import annotations

from functools import partial
from typing import Any

from markupsafe import Markup

from reports.analysis.report import RaceReport
from reports.figures import chart_data, race_figures
from reports.figures.layout import NARROW, WIDE
from reports.pages import tables
from reports.pages.samples import samples_of
from reports.pages.section import drawings, render_template
from reports.race.race import Race
from reports.stats.number_format import column_unit

BUSY = 100
"""The number of curves above which one static figure serves every width: it is for print, and has most of
the page's bytes."""
COUNTED_OUT = ("eval", "checkpoint", "gradients", "tracking", "warmup")
"""The phases whose time is recorded but not counted as training."""


def verdict_section(report: RaceReport) -> Markup:
    """Return the verdict as a sentence, the speed-ups on all axes as a table, and the caveats."""
    found = tables.headline_tables(report)
    return render_template(
        "verdict", report.race, headline=report.headline, tables=found, caveats=report.caveats
    )


def other_target_section(report: RaceReport) -> Markup | None:
    """Return the verdict and the times at every target of a list, with a switch; None for one target."""
    every = (report, *report.at_other_targets)
    if len(every) < 2:
        return None
    panes = [
        {
            "name": str(one.race.rule),
            "goal": one.goal,
            "headline": one.headline,
            "cells": {axis: tables.axis_texts(one.race, axis) for axis in one.race.axes},
        }
        for one in every
    ]
    return render_template("other_targets", report.race, panes=panes)


def convergence_section(report: RaceReport) -> Markup | None:
    """Return the convergence of every run and the mean of every arm, on every axis."""
    race = report.race
    curves = sum(run.evaluated for run in race.runs)
    if not curves:
        return None
    widths = (WIDE,) if curves > BUSY else (WIDE, NARROW)
    draw = race_figures.draw_convergence
    pictures = {axis: drawings(partial(draw, race, axis), widths) for axis in race.axes}
    return render_template(
        "convergence", race, pictures=pictures, verdict=report.verdict, thinned=_thinned(race)
    )


def target_section(report: RaceReport) -> Markup | None:
    """Return the speed-up as a function of the target."""
    race, by_target = report.race, report.by_target
    if not (race.speedups and by_target.targets):
        return None
    draw = race_figures.draw_targets
    return render_template(
        "targets", race, pictures={axis: drawings(partial(draw, race, axis, by_target)) for axis in race.axes}
    )


def speedup_section(report: RaceReport) -> Markup | None:
    """Return the speed-up at the target by axis."""
    race = report.race
    if not race.speedups:
        return None
    return render_template("speed_up", race, pictures=drawings(partial(race_figures.draw_forest, race)))


def time_section(report: RaceReport) -> Markup | None:
    """Return times to target as a table."""
    race = report.race
    if not race.times:
        return None
    rows = {axis: tables.axis_texts(race, axis) for axis in race.axes}
    return render_template("times", race, goal=report.goal, cells=rows, mlperf=tables.mlperf_line(race))


def cost_section(report: RaceReport) -> Markup | None:
    """Return the cost of a step by phase, and the recorded time that does not count."""
    race = report.race
    if not any(run.record.last_trained for run in race.runs):
        return None
    costs = [_cost_row(race, arm.label) for arm in race.arms]
    for axis in ("flops", "seconds"):
        unit = column_unit(axis, [row[axis] for row in costs if row[axis]])
        for row in costs:
            row[axis] = tables.in_unit(axis, row[axis], unit) if row[axis] else "–"
    pictures = drawings(partial(race_figures.draw_cost, race))
    return render_template("cost", race, pictures=pictures, phases=race_figures.PHASES, costs=costs)


def sample_section(report: RaceReport) -> Markup | None:
    """Return samples drawn from the same latents, by arm and step."""
    samples = samples_of(report.race)
    return None if samples is None else render_template("samples", report.race, samples=samples)


def run_section(report: RaceReport) -> Markup:
    """Return every run, including missing and failed ones."""
    return render_template("runs", report.race, runs=report.run_rows)


def _thinned(race: Race) -> int | None:
    """Return the number of points to which long curves are thinned; None if every curve is complete."""
    most = chart_data.allowance(race)
    longest = max((len(run.curve.steps) for run in race.runs if run.evaluated), default=0)
    return most if longest > most else None


def _cost_row(race: Race, label: str) -> dict[str, Any]:
    """Return FLOPs and seconds of a step, and the seconds of phases that do not count, summed over runs."""
    runs = race.of(label)
    totals = [event["seconds"] for run in runs if (event := run.record.log.last_timed)]
    trained = [run for run in runs if run.costs.budget("steps") > 0]
    flops = [run.costs.budget("flops") / run.costs.budget("steps") for run in trained]
    return {
        "label": label,
        "flops": sum(flops) / len(flops) if flops else None,
        "seconds": sum(race_figures.phase_seconds(runs).values()),
        "not_counted": {phase: sum(spent.get(phase, 0.0) for spent in totals) for phase in COUNTED_OUT},
    }
