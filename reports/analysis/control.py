"""Probes of state and action by arm and layer, from a study's `control.json` (`flowrace probe STUDY
--control`).

The unit is the seed: a score is the mean R2 over an arm's finished runs, each at its newest measured step,
with Student's t interval. Pixels are the same for every seed, so their interval, like that of a single run,
is over videos.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError
from reports.race.race import Race
from reports.race.study_folder import read_probe_tables
from reports.stats.means import mean_of

FILE = "control.json"
PIXELS = "pixels"
FLOORS = (PIXELS, "untrained")
TARGETS = ("state", "action")


@dataclass(frozen=True)
class Score:
    """R2 with its interval: 1 is a perfect prediction, 0 a constant one; negative values are possible."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Control:
    """Scores by (arm, row, target); rows are FLOORS and layers."""

    arms: tuple[str, ...]
    rows: tuple[str, ...]
    scores: Mapping[tuple[str, str, str], Score]
    steps: Mapping[str, tuple[int, ...]]
    """The steps at which each arm's runs were measured."""
    seeds: Mapping[str, int]
    """The number of seeds in each arm's means."""
    protocol: Mapping[str, Any]
    videos: tuple[int, ...]
    """The numbers of videos on which runs were measured."""
    absent: int
    """The number of finished runs that the table does not contain."""

    def best(self, arm: str, target: str) -> str:
        """Return the layer from which a target is predicted best in an arm."""
        layers = [row for row in self.rows if row not in FLOORS and (arm, row, target) in self.scores]
        return max(layers, key=lambda row: self.scores[arm, row, target].mean)


def compute_control(race: Race) -> Control | None:
    """Return the scores of a race, or None if none of its finished runs was probed.

    Raises `UserError` for an invalid table, and for tables measured under different settings.
    """
    folders = {run.record.path.parent for run in race.runs}
    tables = [_checked(file, table) for file, table in read_probe_tables(folders, FILE)]
    if not tables:
        return None
    if any(table["protocol"] != tables[0]["protocol"] for table in tables):
        raise UserError(
            f"the {FILE} files of these folders were measured under different settings; measure one of them "
            "again with: flowrace probe STUDY --control"
        )
    known = {id_: entry for table in tables for id_, entry in table["runs"].items() if entry["steps"]}
    done = [run for run in race.runs if run.done]
    entries = {
        arm.label: probed
        for arm in race.arms
        if (
            probed := [
                known[run.record.id] for run in done if run.arm == arm.label and run.record.id in known
            ]
        )
    }
    if not entries:
        return None
    scores = {
        (arm, row, target): score
        for arm, probed in entries.items()
        for (row, target), score in _scores(probed).items()
    }
    return Control(
        arms=tuple(entries),
        rows=tuple(sorted({row for _, row, _ in scores}, key=_place)),
        scores=scores,
        steps={arm: tuple(sorted({_newest(entry) for entry in probed})) for arm, probed in entries.items()},
        seeds={arm: len(probed) for arm, probed in entries.items()},
        protocol=tables[0]["protocol"],
        videos=tuple(sorted({entry["videos"] for probed in entries.values() for entry in probed})),
        absent=len(done) - sum(map(len, entries.values())),
    )


def mean_score(values: Sequence[Mapping[str, float]]) -> Score:
    """Return the mean over one arm's runs, each {mean, low, high}; a single run keeps its own interval."""
    mean = mean_of([float(value["mean"]) for value in values])
    if mean.low is None or mean.high is None:
        return Score(mean.mean, float(values[0]["low"]), float(values[0]["high"]))
    return Score(mean.mean, mean.low, mean.high)


def _checked(file: Path, table: Any) -> dict[str, Any]:
    """Return the table if it is valid."""
    try:
        if table["protocol"]["time"] is not None and all(map(_is_entry, table["runs"].values())):
            return table
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise UserError(
        f"{file} is not a valid table of probes; move it away and run: flowrace probe {file.parent} --control"
    )


def _is_entry(entry: Mapping[str, Any]) -> bool:
    """Return True if a run has its videos, floors and layers, or no measured step yet."""
    return not entry["steps"] or (
        entry["videos"] > 0 and max(_place(row) for row, _ in _scores([entry]))[1] > 0
    )


def _scores(entries: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Score]:
    """Return mean scores over runs, by row and target."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        layers = entry["steps"][str(_newest(entry))]
        for name, row in {**{floor: entry[floor] for floor in FLOORS}, **layers}.items():
            rows.setdefault(name, []).append(row)
    # Pixels have the same score in every run.
    rows[PIXELS] = rows[PIXELS][:1]
    return {
        (name, target): mean_score([score[target] for score in of_row])
        for name, of_row in rows.items()
        for target in TARGETS
    }


def _newest(entry: Mapping[str, Any]) -> int:
    return max(map(int, entry["steps"]))


def _place(row: str) -> tuple[int, int]:
    """Return a sort key: floors first, then layers by number."""
    return (FLOORS.index(row), 0) if row in FLOORS else (len(FLOORS), int(row.removeprefix("layer ")))
