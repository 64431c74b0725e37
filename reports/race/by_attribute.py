"""The speed-up by attribute of the captions: the same runs, asked by other metrics that they recorded.

    loss:held_out/two_digits   the validation loss of the captions that state an attribute, or have a length
    1-obeys:colour             the share of samples that do not show what their caption states

Each metric has its own target, found by the rule of the race if that is relative to the baseline, else the
baseline's final value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from harness.config.data_spec import DataParts
from harness.errors import UserError
from harness.records.evaluations import SHORTFALL, recorded_name
from harness.records.measured import last_row, metric_names
from harness.records.targets import TargetRule
from reports.race.race import Race, race_at
from reports.race.run import RaceRun
from reports.stats.curves import curve_of

LOSS, OBEYS = "loss:held_out/", "obeys:"
PARTS = ("image", *DataParts.model_fields)
"""Parts of samples, whose loss is not one of a group of captions."""
FINAL = TargetRule(share=1.0)
"""The baseline's final value."""


@dataclass(frozen=True)
class AttributeRace:
    """The race by one metric of captions with an attribute, or of the attribute in samples."""

    attribute: str
    """In words, for example `two digits`."""
    race: Race
    samples: int | None
    """The number of samples, or captions, of an evaluation that the metric counts."""


def by_attribute(race: Race) -> tuple[AttributeRace, ...]:
    """Return the race by each attribute that its runs recorded at two or more steps, in order of the record.

    Empty for runs without captions, and if fewer than two arms have finished runs.
    """
    if len({run.arm for run in race.runs if run.done}) < 2:
        return ()
    found = (_asked_by(race, metric) for metric in _metrics(race))
    return tuple(one for one in found if one is not None)


def _metrics(race: Race) -> Iterator[str]:
    """Yield the metrics of attributes, falling ones."""
    for name in dict.fromkeys(name for run in race.runs for name in metric_names(run.record)):
        if name.startswith(LOSS) and name.removeprefix(LOSS) not in PARTS:
            yield name
        elif name.startswith(OBEYS) and "/" not in name:
            yield SHORTFALL + name


def _asked_by(race: Race, metric: str) -> AttributeRace | None:
    """Return the race by a metric; None without curves, or without a target that they have."""
    try:
        runs = tuple(_of_metric(run, metric) for run in race.runs)
        finished = [run for run in runs if run.done]
        if len({run.arm for run in finished}) < 2 or any(len(run.curve.steps) < 2 for run in finished):
            return None
        rule = race.rule if race.rule is not None and race.rule.relative else FINAL
        asked = race_at(replace(race, metric=metric, runs=runs, rules=(rule,)), rule)
    except UserError:
        return None
    return AttributeRace(_words(metric), asked, _samples(finished[0], metric)) if asked.speedups else None


def _of_metric(run: RaceRun, metric: str) -> RaceRun:
    fit = curve_of(run.record, metric)
    return replace(run, metric=metric, fit=fit, sustained=None, first=None)


def _words(metric: str) -> str:
    """Return the attribute of a metric in words.

    >>> _words("loss:held_out/two_digits"), _words("1-obeys:colour")
    ('two digits', 'colour')
    """
    name = recorded_name(metric)
    return name.removeprefix(LOSS).removeprefix(OBEYS).replace("_", " ")


def _samples(run: RaceRun, metric: str) -> int | None:
    return (last_row(run.record, metric) or {}).get("n")
