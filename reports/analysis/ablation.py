"""The ablation matrix: a row for each setting of the objective, a column for each cell, and what each
setting did there.

Every entry has the metric at the end and its change against the baseline of the same cell, and the
speed-up. An effect whose interval contains none (a factor of 1) is not resolved. A matrix of many entries
will resolve some by luck alone, so the p-values of all its speed-ups, and those of all its changes, are one
family each, adjusted after Holm (1979): an effect can be resolved by itself and not within its family.
Settings that the plan leaves out stand there with their reason, settings without a run as missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from scipy.special import stdtr

from reports.audit.decision import holm
from reports.race.arms import flatten, setting
from reports.race.race import Race
from reports.race.run import RaceRun
from reports.race.workloads import Workload
from reports.stats.curves import value_at
from reports.stats.speedup import MeanTime, Speedup, Time, mean_time, speedup
from reports.stats.student import CONFIDENCE

Values = tuple[tuple[str, str], ...]
"""Paths of a spec with their values as texts."""
State = Literal["baseline", "measured", "missing", "excluded", "unplanned"]
Resolved = Literal["resolved", "alone", "unresolved"]
"""Within the family, by itself only, not at all."""


@dataclass(frozen=True)
class AblationEntry:
    """What one setting did in one cell."""

    state: State
    final: MeanTime | None = None
    """The fitted metric at the cell's last common evaluation: geometric mean over finished runs, t
    interval."""
    change: Speedup | None = None
    """How many times lower the candidate's final metric is than the baseline's, seeds paired."""
    gain: Speedup | None = None
    """Speed-up in steps."""
    change_is: Resolved = "unresolved"
    gain_is: Resolved = "unresolved"
    why: str = ""
    """Of what is not there, and of a cell in which nothing is compared."""


@dataclass(frozen=True)
class Ablation:
    """Entries by row (objective) and column (cell); every row has every column."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    entries: Mapping[tuple[str, str], AblationEntry]
    steps: Mapping[str, float]
    """The step at which each column's final metric is read."""


def compute_ablation(race: Race, objectives: Sequence[str], workloads: Sequence[Workload]) -> Ablation | None:
    """Return the matrix of a study; None if no method has two settings, nothing is left out and there is
    one cell."""
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
    """Return the two-sided p-value that a factor is 1; it is 1 without an interval or if the deciding end
    is open."""
    if effect is None or effect.estimate is None or effect.error is None:
        return 1.0
    distance = math.log(effect.estimate)
    if (effect.low if distance > 0 else effect.high) in (0.0, math.inf):
        return 1.0
    if effect.error == 0:
        return float(distance == 0)
    return 2 * float(stdtr(effect.degrees, -abs(distance) / effect.error))


def _entry(cell: Workload, objective: str) -> AblationEntry | None:
    """Return what a setting did in a cell; None if none of its runs exists."""
    runs, step = cell.runs[objective], _last_step(cell)
    base = next(iter(cell.runs))
    own, reference = _finals(runs, step), _finals(cell.runs[base], step)
    if not any(run.counts for run in runs):
        return AblationEntry("missing", why=", ".join(sorted({run.record.status for run in runs})))
    is_base = (objective, cell.why) == (base, "")
    compared = own and reference and not is_base and not cell.why
    return AblationEntry(
        "baseline" if is_base else "measured",
        final=mean_time(own.values()) if own else None,
        change=speedup(reference, own) if compared else None,
        gain=None if is_base else cell.speedups.get(("steps", objective)),
        why=cell.why,
    )


def _last_step(cell: Workload) -> float | None:
    """Return the last evaluation that every finished run of a cell has, because values at different steps
    are not comparable."""
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
    """Judge effects as one family; effects that cannot be tested belong to none."""
    raw = [p_value(effect) for effect in effects]
    tested = [i for i, effect in enumerate(effects) if effect is not None and effect.error is not None]
    adjusted = dict(zip(tested, holm([raw[i] for i in tested]), strict=True))
    alpha = 1 - CONFIDENCE
    return [
        "resolved" if adjusted.get(i, 1.0) <= alpha else "alone" if p <= alpha else "unresolved"
        for i, p in enumerate(raw)
    ]


def _absent(race: Race, workloads: Sequence[Workload]) -> dict[tuple[str, str], AblationEntry]:
    """Return what the plan leaves out, and what it has but no run was made of; named as the runs that share
    its values are."""
    rows, columns = _names(race, workloads)
    found: dict[tuple[str, str], AblationEntry] = {}
    left = [(run.values, AblationEntry("missing", why="no run yet")) for run in race.missing]
    left += [(left.values, AblationEntry("excluded", why=left.reason)) for left in race.excluded]
    for values, entry in left:
        method, workload = _parts(values)
        row, column = rows.get(method, _said(method)), columns.get(workload, _said(workload))
        found.setdefault((row, column), entry)
    return found


def _names(race: Race, workloads: Sequence[Workload]) -> tuple[dict[Values, str], dict[Values, str]]:
    """Return the objective, and the cell, of each set of planned values."""
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
    """Return the method's values and the others of a combination, without the seed, as keys."""
    flat = {path: value for path, value in flatten(values).items() if path != "seed"}
    texts = [(path, str(value)) for path, value in sorted(flat.items())]
    method = tuple(text for text in texts if text[0].startswith("method."))
    return method, tuple(text for text in texts if text not in method)


def _said(values: Values) -> str:
    """Return values that no run has, in words as labels are."""
    name = dict(values).get("method.name")
    settings = ", ".join(setting(path, value) for path, value in values if path != "method.name")
    return settings if name is None else name + (f" ({settings})" if settings else "")
