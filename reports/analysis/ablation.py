"""The ablation matrix: the effect of each setting of the objective (rows) in each cell (columns).

Every entry has the final metric, its change against the baseline of the same cell, and the speed-up. An
effect is unresolved if its interval contains a factor of 1. In a large matrix some effects are resolved by
chance alone. The p-values of all speed-ups therefore form one family, and those of all changes another,
adjusted by Holm's method (1979): an effect can be resolved by itself but not within its family. Settings
that the plan excludes are listed with the reason, settings without a run as missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from scipy.special import stdtr

from reports.audit.decision import holm
from reports.race.arms import flatten, setting, shown_name
from reports.race.race import Race
from reports.race.run import RaceRun
from reports.race.workloads import Workload
from reports.stats.curves import value_at
from reports.stats.speedup import MeanTime, Speedup, Time, mean_time, speedup
from reports.stats.t_interval import CONFIDENCE

Values = tuple[tuple[str, str], ...]
"""Paths of a spec with their values as texts."""
State = Literal["baseline", "measured", "missing", "excluded", "unplanned"]
Resolved = Literal["resolved", "alone", "unresolved"]
"""Resolved within the family, by itself only ("alone"), or not at all."""


@dataclass(frozen=True)
class AblationEntry:
    """The effect of one setting in one cell."""

    state: State
    final: MeanTime | None = None
    """The fitted metric at the cell's last common evaluation: geometric mean over finished runs, with a t
    interval."""
    change: Speedup | None = None
    """The baseline's final metric divided by the candidate's, seeds paired."""
    gain: Speedup | None = None
    """Speed-up in steps."""
    change_is: Resolved = "unresolved"
    gain_is: Resolved = "unresolved"
    why: str = ""
    """The reason for a missing or excluded entry, or for a cell in which nothing is compared."""


@dataclass(frozen=True)
class Ablation:
    """Entries by row (objective) and column (cell); every row has every column."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    entries: Mapping[tuple[str, str], AblationEntry]
    steps: Mapping[str, float]
    """The step at which each column's final metric is read."""


def compute_ablation(race: Race, objectives: Sequence[str], workloads: Sequence[Workload]) -> Ablation | None:
    """Return the matrix of a study, or None if there is nothing to tabulate.

    That is a study of one cell in which every method has one setting and nothing is excluded.
    """
    measured = {(o, cell.label): _entry(cell, o) for cell in workloads for o in cell.runs}
    absent = _absent(race, workloads)
    entries = absent | {key: entry for key, entry in measured.items() if entry is not None}
    rows = tuple(dict.fromkeys([*objectives, *(row for row, _ in entries)]))
    columns = tuple(dict.fromkeys([*(cell.label for cell in workloads), *(column for _, column in entries)]))
    methods = [row.partition(" (")[0] for row in rows]
    if len(columns) < 2 and len(set(methods)) == len(methods) and not race.excluded:
        return None
    every = {
        (row, column): entries.get((row, column), AblationEntry("unplanned"))
        for row in rows
        for column in columns
    }
    steps = {cell.label: step for cell in workloads if (step := _last_step(cell)) is not None}
    return Ablation(rows, columns, _judged(every), steps)


def p_value(effect: Speedup | None) -> float:
    """Return the two-sided p-value of the hypothesis that a factor is 1.

    The p-value is 1 without an interval, or if the end of the interval nearer to 1 is open.
    """
    if effect is None or effect.estimate is None or effect.error is None:
        return 1.0
    distance = math.log(effect.estimate)
    if (effect.low if distance > 0 else effect.high) in (0.0, math.inf):
        return 1.0
    if effect.error == 0:
        return float(distance == 0)
    return 2 * float(stdtr(effect.degrees, -abs(distance) / effect.error))


def _entry(cell: Workload, objective: str) -> AblationEntry | None:
    """Return the effect of an objective in a cell of which it has runs."""
    runs, step = cell.runs[objective], _last_step(cell)
    base = next(iter(cell.runs))
    candidate, reference = _finals(runs, step), _finals(cell.runs[base], step)
    if not any(run.counts for run in runs):
        return AblationEntry("missing", why=", ".join(sorted({run.record.status for run in runs})))
    is_base = (objective, cell.why) == (base, "")
    compared = candidate and reference and not is_base and not cell.why
    return AblationEntry(
        "baseline" if is_base else "measured",
        final=mean_time(candidate.values()) if candidate else None,
        change=speedup(reference, candidate) if compared else None,
        gain=None if is_base else cell.speedups.get(("steps", objective)),
        why=cell.why,
    )


def _last_step(cell: Workload) -> float | None:
    """Return the last step at which every finished run of a cell has been evaluated: values at different
    steps are not comparable."""
    return min((run.curve.steps[-1] for own in cell.runs.values() for run in own if run.done), default=None)


def _finals(runs: Sequence[RaceRun], step: float | None) -> dict[int, Time]:
    """Return the fitted metric of finished runs at a step, by seed."""
    values = {run.seed: value_at(run.curve, step) for run in runs if run.done and step is not None}
    return {seed: Time(value) for seed, value in values.items() if value is not None}


def _judged(entries: Mapping[tuple[str, str], AblationEntry]) -> dict[tuple[str, str], AblationEntry]:
    keys = [key for key, entry in entries.items() if entry.state == "measured"]
    gains = _family([entries[key].gain for key in keys])
    changes = _family([entries[key].change for key in keys])
    judged = {
        key: replace(entries[key], gain_is=gain, change_is=change)
        for key, gain, change in zip(keys, gains, changes, strict=True)
    }
    return {key: judged.get(key, entry) for key, entry in entries.items()}


def _family(effects: Sequence[Speedup | None]) -> list[Resolved]:
    """Judge effects as one family; effects that cannot be tested are not part of it."""
    raw = [p_value(effect) for effect in effects]
    tested = [i for i, effect in enumerate(effects) if effect is not None and effect.error is not None]
    adjusted = dict(zip(tested, holm([raw[i] for i in tested]), strict=True))
    alpha = 1 - CONFIDENCE
    return [
        "resolved" if adjusted.get(i, 1.0) <= alpha else "alone" if p <= alpha else "unresolved"
        for i, p in enumerate(raw)
    ]


def _absent(race: Race, workloads: Sequence[Workload]) -> dict[tuple[str, str], AblationEntry]:
    """Return entries for planned combinations without a run and for those that the plan excludes.

    Rows and columns are named as for existing runs with the same values.
    """
    rows, columns = _names(race, workloads)
    entries: dict[tuple[str, str], AblationEntry] = {}
    absent = [(run.values, AblationEntry("missing", why="no run yet")) for run in race.missing]
    absent += [(run.values, AblationEntry("excluded", why=run.reason)) for run in race.excluded]
    for values, entry in absent:
        method, workload = _parts(values)
        row = rows.get(method, _shown(race, method))
        column = columns.get(workload, _name(workload))
        entries.setdefault((row, column), entry)
    return entries


def _names(race: Race, workloads: Sequence[Workload]) -> tuple[dict[Values, str], dict[Values, str]]:
    """Return the label of the objective, and of the cell, for each set of planned values."""
    places = {
        run.record.id: (objective, cell.label)
        for cell in workloads
        for objective, own in cell.runs.items()
        for run in own
    }
    rows: dict[Values, str] = {}
    columns: dict[Values, str] = {}
    for run in race.plan:
        if run.id in places:
            method, workload = _parts(run.values)
            rows[method], columns[workload] = places[run.id]
    return rows, columns


def _parts(values: Mapping[str, Any]) -> tuple[Values, Values]:
    """Return the method's values, and all others except the seed, of a planned combination."""
    flat = {path: value for path, value in flatten(values).items() if path != "seed"}
    texts = [(path, str(value)) for path, value in sorted(flat.items())]
    method = tuple(text for text in texts if text[0].startswith("method."))
    return method, tuple(text for text in texts if text not in method)


def _shown(race: Race, method: Values) -> str:
    name = dict(method).get("method.name")
    return _name(method) if name is None else shown_name(_name(method), name, race.labels or {})


def _name(values: Values) -> str:
    """Return a label for values that no run has, in the style of arm labels."""
    name = dict(values).get("method.name")
    settings = ", ".join(setting(path, value) for path, value in values if path != "method.name")
    return settings if name is None else name + (f" ({settings})" if settings else "")
