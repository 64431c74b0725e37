"""The final value of every metric and arm: a mean over seeds with its interval, next to the score of real
samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from reports.race.metric_notes import noise_floors
from reports.race.race import Race
from reports.race.run import RaceRun
from reports.stats.means import Mean, mean_of


class FinalValue(NamedTuple):
    """A metric at the last step of an arm's finished runs."""

    arm: str
    metric: str
    step: int
    over_seeds: Mean


def final_values_of(race: Race) -> list[FinalValue]:
    """Return final values by metric, then arm, in the order of records; runs that ended before the arm's
    last step are left out."""
    found = [final for arm in race.arms for final in _of_arm(race.of(arm.label), arm.label)]
    order = list(dict.fromkeys(final.metric for final in found))
    return sorted(found, key=lambda final: order.index(final.metric))


def real_sample_values(race: Race) -> dict[str, dict[str, float]]:
    """Return what real samples score by metric and kind: held out, halves of the training set, spoilt."""
    found: dict[str, dict[str, float]] = {}
    for run in race.runs:
        for metric, kinds in noise_floors(run).items():
            found.setdefault(metric, {kind: value["mean"] for kind, value in kinds.items()})
    return found


def _of_arm(runs: Sequence[RaceRun], label: str) -> Iterator[FinalValue]:
    ends: dict[str, dict[int, list[float]]] = {}
    for last in (run.record.of("eval")[-1:] for run in runs if run.record.status == "done"):
        for event in last:
            for metric, value in event["metrics"].items():
                ends.setdefault(metric, {}).setdefault(event["step"], []).append(value["mean"])
    for metric, by_step in ends.items():
        step = max(by_step)
        yield FinalValue(label, metric, step, mean_of(by_step[step]))
