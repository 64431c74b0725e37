"""What layers encode of state and action: `control.json` of a study (`flowrace probe STUDY --control`) as
arms x layers.

The unit is the seed: a cell is the mean of R2 over an arm's finished runs, each at its newest step that was
measured, with Student's t interval. Pixels are the same for every seed: they, and a single run, have the
interval over videos.
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
    """R2: 1 is perfect, 0 what a constant reads, and less is possible."""

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
    """At which an arm's runs were measured."""
    seeds: Mapping[str, int]
    """Of an arm, that its means are over."""
    protocol: Mapping[str, Any]
    videos: tuple[int, ...]
    """The numbers of videos that runs were measured on."""
    absent: int
    """Finished runs that have no place in the table."""

    def best(self, arm: str, target: str) -> str:
        """Return the layer from which an arm's runs are read best."""
        layers = [row for row in self.rows if row not in FLOORS and (arm, row, target) in self.scores]
        return max(layers, key=lambda row: self.scores[arm, row, target].mean)


def compute_control(race: Race) -> Control | None:
    """Return the table; None without one. Raises `UserError` for an invalid table, and for tables that
    disagree."""
    folders = {run.record.path.parent for run in race.runs}
    tables = [_checked(file, table) for file, table in read_probe_tables(folders, FILE)]
    if not tables:
        return None
    if any(table["protocol"] != tables[0]["protocol"] for table in tables):
        raise UserError(
            f"{FILE} of these folders were measured under different settings; measure one of them again"
        )
    known = {id_: entry for table in tables for id_, entry in table["runs"].items() if entry["steps"]}
    done = [run for run in race.runs if run.done]
    entries = {
        arm.label: own
        for arm in race.arms
        if (own := [known[run.record.id] for run in done if run.arm == arm.label and run.record.id in known])
    }
    if not entries:
        return None
    scores = {(arm, *place): score for arm, own in entries.items() for place, score in _scores(own).items()}
    return Control(
        arms=tuple(entries),
        rows=tuple(sorted({row for _, row, _ in scores}, key=_place)),
        scores=scores,
        steps={arm: tuple(sorted({_newest(entry) for entry in own})) for arm, own in entries.items()},
        seeds={arm: len(own) for arm, own in entries.items()},
        protocol=tables[0]["protocol"],
        videos=tuple(sorted({entry["videos"] for own in entries.values() for entry in own})),
        absent=len(done) - sum(map(len, entries.values())),
    )


def mean_score(values: Sequence[Mapping[str, float]]) -> Score:
    """Return the mean over one arm's runs, each {mean, low, high}."""
    found = mean_of([float(value["mean"]) for value in values])
    if found.low is None or found.high is None:
        return Score(found.mean, float(values[0]["low"]), float(values[0]["high"]))
    return Score(found.mean, found.low, found.high)


def _checked(file: Path, table: Any) -> dict[str, Any]:
    """Return the table if it is valid."""
    try:
        if table["protocol"]["time"] is not None and all(map(_is_entry, table["runs"].values())):
            return table
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise UserError(
        f"{file} is not a table of control; move it away and run: flowrace probe {file.parent} --control"
    )


def _is_entry(entry: Mapping[str, Any]) -> bool:
    """Return whether a run has its videos, floors and layers, or none of its layers yet."""
    return not entry["steps"] or (
        entry["videos"] > 0 and max(_place(row) for row, _ in _scores([entry]))[1] > 0
    )


def _scores(entries: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Score]:
    """Return scores over runs, by row and target."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        layers = entry["steps"][str(_newest(entry))]
        for name, row in {**{floor: entry[floor] for floor in FLOORS}, **layers}.items():
            rows.setdefault(name, []).append(row)
    rows[PIXELS] = rows[PIXELS][:1]
    return {(name, t): mean_score([row[t] for row in own]) for name, own in rows.items() for t in TARGETS}


def _newest(entry: Mapping[str, Any]) -> int:
    return max(map(int, entry["steps"]))


def _place(row: str) -> tuple[int, int]:
    """Return a sort key: floors first, then layers by number."""
    return (FLOORS.index(row), 0) if row in FLOORS else (len(FLOORS), int(row.removeprefix("layer ")))
