"""Caveats on the metric itself: which arms it favours, failed evaluations, and scores of real samples."""

from __future__ import annotations

from collections import Counter
from typing import Any

from harness.records.evaluations import recorded_name
from harness.records.measured import evaluation_errors
from reports.race.race import Race
from reports.race.run import RaceRun


def about_metric(race: Race) -> list[str]:
    """Return sentences for the caveats, most important first."""
    return [*_favours(race), *_failures(race), *_floors(race)]


def _favours(race: Race) -> list[str]:
    arms = {
        run.arm: None
        for run in race.runs
        if recorded_name(race.metric) in _evaluation(run).get("aligned", ())
    }
    if not arms:
        return []
    return [
        f"{', '.join(arms)} aligned to the network that computes {race.metric}, which rewards the alignment "
        "itself: use another metric of these runs."
    ]


def _failures(race: Race) -> list[str]:
    failed: Counter[str] = Counter()
    for run in race.runs:
        failed.update(f"{name} ({reason})" for name, reason in evaluation_errors(run.record))
    return [f"Could not be computed at {_times(count)}: {what}." for what, count in sorted(failed.items())]


def noise_floors(run: RaceRun) -> dict[str, dict[str, Any]]:
    """Return the recorded scores of real samples, by metric and kind."""
    return _evaluation(run).get("floor", {})


def _floors(race: Race) -> list[str]:
    """Return one sentence; runs under one protocol have the same noise floor."""
    name = recorded_name(race.metric)
    floors = [floor for run in race.runs if (floor := noise_floors(run).get(name))]
    if not floors:
        return []
    texts = [_floor(kind, value) for kind, value in floors[0].items()]
    which = "real against real" if any(value["n_real"] for value in floors[0].values()) else "real samples"
    return [f"Noise floor of {name}, {which}: {'; '.join(texts)}."]


def _floor(name: str, value: dict[str, Any]) -> str:
    if not value["n_real"]:
        spoilt = ", spoilt" if name == "spoilt" else ""
        return f"{value['mean']:.4g} ({value['n']} held-out samples{spoilt})"
    if name == "held_out":
        return f"{value['mean']:.4g} ({value['n']} held-out against {value['n_real']} training samples)"
    return f"{value['mean']:.4g} ({value['n']} training samples against {value['n_real']} others)"


def _evaluation(run: RaceRun) -> dict[str, Any]:
    """Return the recorded description of the evaluation; empty for older records."""
    starts = run.record.environment
    return starts[-1].get("evaluation", {}) if starts else {}


def _times(count: int) -> str:
    return f"{count} evaluation" + ("" if count == 1 else "s")
