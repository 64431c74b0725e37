"""The sections that every race has: the verdict, its curves, its times and costs, its samples and runs."""

from __future__ import annotations

from functools import partial
from typing import Any

from markupsafe import Markup

from reports.figures import chart_data as charts
from reports.figures import race_figures as figures
from reports.figures.layout import NARROW, WIDE
from reports.pages import tables
from reports.pages.samples import samples_of
from reports.pages.section import drawings, render
from reports.race.race import Race
from reports.race.verdict import caveats, goal, sentence

BUSY = 100
"""Curves above which one static picture serves every width: it is for print, and has most of the page's bytes."""
COUNTED_OUT = ("eval", "checkpoint", "tracking", "warmup")


def verdict(race: Race) -> Markup:
    """Who was first, in a sentence, a table of all axes, and what must be said beside it."""
    strips = {
        axis: {c: tables.gain_cells(race.speedups.get((axis, c))) for c in race.candidates}
        for axis in race.axes
    }
    headline = sentence(race, race.axes[0])
    return render("verdict", race, headline=headline, strips=strips, caveats=caveats(race))


def convergence(race: Race) -> Markup | None:
    """Every curve with its mean, on every axis."""
    curves = sum(run.curve is not None for run in race.runs)
    if not curves:
        return None
    widths = (WIDE,) if curves > BUSY else (WIDE, NARROW)
    pictures = {axis: drawings(partial(figures.convergence, race, axis), widths) for axis in race.axes}
    sentences = {axis: sentence(race, axis) for axis in race.axes}
    return render("convergence", race, pictures=pictures, verdict=sentences, thinned=_thinned(race))


def targets(race: Race) -> Markup | None:
    """The speed-up as a function of the target."""
    at = charts.targets(race)
    if not (race.speedups and len(at)):
        return None
    gains = charts.gains_by_target(race, race.axes, at)
    pictures = {axis: drawings(partial(figures.targets, race, axis, gains[axis])) for axis in race.axes}
    return render("targets", race, pictures=pictures)


def speed_up(race: Race) -> Markup | None:
    """The speed-up at the target by axis."""
    if not race.speedups:
        return None
    return render("speed_up", race, pictures=drawings(partial(figures.forest, race)))


def times(race: Race) -> Markup | None:
    """Times to target in words and numbers."""
    if not race.times:
        return None
    cells = {axis: tables.cells(race, axis) for axis in race.axes}
    return render("times", race, goal=goal(race), cells=cells)


def cost(race: Race) -> Markup | None:
    """What a step costs, by phase, and what was booked beside it."""
    if not any(run.record.of("train") for run in race.runs):
        return None
    costs = [_cost_row(race, arm.label) for arm in race.arms]
    pictures = drawings(partial(figures.cost, race))
    return render("cost", race, pictures=pictures, phases=figures.PHASES, costs=costs)


def samples(race: Race) -> Markup | None:
    """Pictures of the same latents by arm and step."""
    found = samples_of(race)
    return None if found is None else render("samples", race, samples=found)


def runs(race: Race) -> Markup:
    """Every run, the missing and the failed ones too."""
    return render("runs", race, runs=tables.run_rows(race))


def _thinned(race: Race) -> int | None:
    """Points to which long curves were thinned on the page; None when every curve is whole."""
    most = charts.allowance(race)
    longest = max((len(run.curve.steps) for run in race.runs if run.curve is not None), default=0)
    return most if longest > most else None


def _cost_row(race: Race, label: str) -> dict[str, Any]:
    """FLOPs and seconds of a step, and what was booked but does not count, in seconds by phase, summed over runs."""
    own = race.of(label)
    totals = [[e["seconds"] for e in run.record.events if "seconds" in e][-1:] for run in own]
    steps = [run for run in own if run.costs.budget("steps") > 0]
    flops = [run.costs.budget("flops") / run.costs.budget("steps") for run in steps]
    return {
        "label": label,
        "flops": sum(flops) / len(flops) if flops else None,
        "seconds": sum(figures.phase_seconds(own).values()),
        "apart": {phase: sum(t.get(phase, 0.0) for last in totals for t in last) for phase in COUNTED_OUT},
    }
