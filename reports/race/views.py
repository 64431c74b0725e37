"""The sets of conditions under which the runs of a race were evaluated, and the race under each of them.

A run is evaluated during training under the conditions of its spec, and may be measured later under others,
for example another scale of guidance (`flowrace eval RUN --guidance 1.5`). A *view* is the race under one of
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from harness.records.evaluations import GUIDANCES, Conditions, varied
from reports.race.cells import RaceCell
from reports.race.conditions import absent
from reports.race.race import Race, race_at
from reports.race.run import run_of
from reports.stats.curves import value_at
from reports.stats.means import Mean, mean_of

NAMES = {
    "sampler_steps": "the number of sampler steps",
    "sampler_shift": "the shift of the sampler's times",
    "samples": "the number of samples",
    "seed": "the seed of the evaluation",
    "labels": "the choice of labels",
    "precision": "the precision of sampling",
    "method_guidance": "the method's guidance",
    "ema": "the precision of the kept weights",
}
"""Names of settings in the question; others are their own name."""


@dataclass(frozen=True)
class RankedArm:
    """An arm under one set of conditions, at the last step that all finished runs of its cell share."""

    rank: int
    """1 is best; within the cell."""
    step: float
    value: Mean
    difference: Mean | None
    """Arm minus the cell's baseline, paired by seed; None for the baseline and without shared seeds."""


@dataclass(frozen=True)
class View:
    """A race under one set of conditions."""

    name: str
    """The settings that distinguish the conditions, for example `guidance=1.5`."""
    race: Race

    @cached_property
    def ranking(self) -> dict[str, RankedArm]:
        """The arms by label; without arms that have no finished run under these conditions."""
        return {label: arm for cell in self.race.cells for label, arm in _ranked(self.race, cell).items()}


@dataclass(frozen=True)
class Flip:
    """Two arms whose order changes between two views, each time beyond the interval of their difference."""

    first: str
    second: str
    better: str
    """The view in which `first` is better."""
    worse: str


def views_of(race: Race) -> tuple[View, ...]:
    """Return the race under all conditions in which its metric was evaluated, the shown ones first.

    A single view if there is only one set of conditions.
    """
    records = [run.record for run in race.runs]
    if all(len(record.views) < 2 for record in records):
        return (View("", race),)
    every = list(dict.fromkeys(view for record in records for view in record.views))
    varying = varied(every) if every else []
    # The interval of times with guidance follows from whether there is guidance.
    for scale in GUIDANCES:
        if scale not in varying:
            continue
        scaled = [one for one in every if getattr(one, scale) != 1]
        both = (f"{scale}_low", f"{scale}_high")
        varying = [name for name in varying if name not in both or (scaled and name in varied(scaled))]
    shown = {_key(record.shown_conditions, varying): None for record in records}
    keys = shown | dict.fromkeys(_key(one, varying) for one in every)
    found = [
        View(_name(key, varying), race if list(shown) == [key] else _under(race, key, varying))
        for key in keys
    ]
    return tuple(view for view in found if any(run.evaluated for run in view.race.runs))


def varying_settings(race: Race) -> str:
    """Return what varies between the views, in words, for the question `Does ... change the ranking?`."""
    names = varied(list(dict.fromkeys(view for run in race.runs for view in run.record.views)))
    intervals = {scale: (f"{scale}_low", f"{scale}_high") for scale in GUIDANCES if scale in names}
    names = [name for name in names if not any(name in interval for interval in intervals.values())]
    words = ["the protocol" if name == "protocol" else NAMES.get(name, name) for name in names]
    return " or ".join(words)


def flips_of(views: Sequence[View]) -> list[Flip]:
    """Return the pairs of arms of a cell whose order changes between views beyond both intervals."""
    found = []
    for (a, b), signs in _signs(views).items():
        better = [name for name, sign in signs.items() if sign < 0]
        worse = [name for name, sign in signs.items() if sign > 0]
        if better and worse:
            found.append(Flip(a, b, better[0], worse[0]))
    return found


def resolved_alike(views: Sequence[View]) -> tuple[int, int]:
    """Return the number of pairs of arms of a cell with one order beyond the interval of every view, and that
    of all pairs."""
    pairs = [{*signs.values()} for signs in _signs(views).values()]
    return sum(signs in ({-1}, {1}) for signs in pairs), len(pairs)


def same_order(views: Sequence[View]) -> bool:
    """Return whether the arms that all views have are ranked in the same order by each."""
    shared = set.intersection(*(set(view.ranking) for view in views))
    orders = []
    for view in views:
        for cell in view.race.cells:
            own = [label for label in cell.arms if label in shared]
            orders.append((cell.label, tuple(sorted(own, key=lambda label: view.ranking[label].value.mean))))
    return len(set(orders)) == len({cell for cell, _ in orders})


def _under(race: Race, key: tuple, varying: Sequence[str]) -> Race:
    runs = []
    for run in race.runs:
        own = next((one for one in run.record.views if _key(one, varying) == key), None)
        record = run.record.under(own or absent("no such conditions"))
        runs.append(run_of(run.arm, run.seed, record, race.metric))
    return race_at(replace(race, runs=tuple(runs)), race.rule)


def _key(conditions: Conditions, varying: Sequence[str]) -> tuple:
    return tuple(getattr(conditions, name) for name in varying)


def _name(key: tuple, varying: Sequence[str]) -> str:
    return ", ".join(f"{name}={_text(value)}" for name, value in zip(varying, key, strict=True))


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _ranked(race: Race, cell: RaceCell) -> dict[str, RankedArm]:
    """Return the arms of a cell, best first."""
    values, base = _finals(race, cell.arms), cell.baseline
    means = {label: mean_of(list(by_seed.values())) for label, (_, by_seed) in values.items()}
    ranked = sorted(means, key=lambda label: means[label].mean)
    return {
        label: RankedArm(
            place,
            values[label][0],
            means[label],
            None
            if base is None or label == base or base not in values
            else _difference(values[label][1], values[base][1]),
        )
        for place, label in enumerate(ranked, 1)
    }


def _finals(race: Race, labels: Iterable[str]) -> dict[str, tuple[float, dict[int, float]]]:
    """Return the step and the fitted values by seed of each arm with finished runs."""
    runs = {label: [run for run in race.of(label) if run.done] for label in labels}
    step = min((run.curve.steps[-1] for own in runs.values() for run in own), default=None)
    if step is None:
        return {}
    values = {label: {run.seed: value_at(run.curve, step) for run in own} for label, own in runs.items()}
    known = {label: {s: v for s, v in own.items() if v is not None} for label, own in values.items()}
    return {label: (float(step), own) for label, own in known.items() if own}


def _difference(own: Mapping[int, float], base: Mapping[int, float]) -> Mean | None:
    shared = sorted(own.keys() & base.keys())
    return mean_of([own[seed] - base[seed] for seed in shared]) if shared else None


def _signs(views: Sequence[View]) -> dict[tuple[str, str], dict[str, int]]:
    """Return `_sign` of each pair of arms of a cell, by view."""
    pairs = [
        (a, b) for cell in views[0].race.cells for i, a in enumerate(cell.arms) for b in cell.arms[i + 1 :]
    ]
    return {(a, b): {view.name: _sign(view.race, a, b) for view in views} for a, b in pairs}


def _sign(race: Race, a: str, b: str) -> int:
    """Return -1 if arm a is better (lower) than b, 1 if worse, 0 if their paired difference is unresolved."""
    values = _finals(race, (a, b))
    found = _difference(values[a][1], values[b][1]) if a in values and b in values else None
    if found is None or found.low is None or found.high is None:
        return 0
    return -1 if found.high < 0 else 1 if found.low > 0 else 0
