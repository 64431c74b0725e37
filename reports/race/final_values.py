"""The final value of every metric and arm: a mean over seeds with its interval, next to the score of real
samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from harness.records.measured import last_evaluation
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
    """Return final values sorted by metric (in the order of the records), then by arm.

    Runs that ended before their arm's last step are left out, and so are those that ended early by a rule.
    """
    finals = [final for arm in race.arms for final in _of_arm(race.of(arm.label), arm.label)]
    order = list(dict.fromkeys(final.metric for final in finals))
    return sorted(finals, key=lambda final: order.index(final.metric))


def real_sample_values(race: Race) -> dict[str, dict[str, float]]:
    """Return the scores of real samples by metric and kind.

    Kinds are held-out samples, one half of the training set against the other, and spoilt samples.
    """
    scores: dict[str, dict[str, float]] = {}
    for run in race.runs:
        for metric, kinds in noise_floors(run).items():
            scores.setdefault(metric, {kind: value["mean"] for kind, value in kinds.items()})
    return scores


def _of_arm(runs: Sequence[RaceRun], label: str) -> Iterator[FinalValue]:
    ends: dict[str, dict[int, list[float]]] = {}
    ended = [run.record for run in runs if run.record.status == "done" and run.record.early_end is None]
    for event in map(last_evaluation, ended):
        if event is not None:
            for metric, value in event["metrics"].items():
                ends.setdefault(metric, {}).setdefault(event["step"], []).append(value["mean"])
    for metric, by_step in ends.items():
        step = max(by_step)
        yield FinalValue(label, metric, step, mean_of(by_step[step]))
