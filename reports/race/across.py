"""The verdict of a race with several cells: one effect pooled over the cells, or one effect per cell.

Either compares an objective with the baseline of the same cell. The best cell of an objective is never
compared with another cell of the baseline, which would credit the objective with the cell's better setting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from reports.race.race import Race
from reports.race.verdict import FEWER, MOST_NAMED, goal
from reports.race.workloads import PooledSpeedup, Workload
from reports.stats.number_format import factor, interval
from reports.stats.speedup import Speedup

Across = Literal["pooled", "cells"]
Pooled = Mapping[tuple[str, str], PooledSpeedup]
"""By axis and objective."""
UNSET = "default settings"
"""Name of the cell whose runs set none of the fields that distinguish the cells."""


def across_of(race: Race, cells: Sequence[Workload], pooled: Pooled) -> Across:
    """Return how the race is summarised: as declared, else pooled if the cells have equal designs.

    Designs are equal if every compared cell has a speed-up of the same objectives. Without a pooled effect
    the summary is per cell, whatever is declared.
    """
    if not pooled:
        return "cells"
    if race.across is not None:
        return "pooled" if race.across == "pooled" else "cells"
    designs = {frozenset(name for _, name in cell.speedups) for cell in cells if not cell.why}
    return "pooled" if len(designs) == 1 else "cells"


def sentence_across(race: Race, cells: Sequence[Workload], pooled: Pooled, axis: str, across: Across) -> str:
    """Return the verdict on one axis, in one to three sentences."""
    if not any(run.done for run in race.runs):
        return "No run has finished yet: there are curves, but no times to compare."
    cells = [replace(cell, label=cell.label or UNSET) for cell in cells]
    compared = [cell for cell in cells if not cell.why]
    if not compared:
        whys = "; ".join(dict.fromkeys(f"{cell.label}: {cell.why}" for cell in cells))
        return f"Inconclusive: no cell has arms to compare ({whys})."
    if across == "pooled":
        own = {name: found for (on, name), found in pooled.items() if on == axis}
        if own:
            return _pooled(race, compared, own, axis) + _silent(cells)
    return _per_cell(race, compared, axis) + _silent(cells)


def _pooled(race: Race, cells: Sequence[Workload], own: Mapping[str, PooledSpeedup], axis: str) -> str:
    base = race.baseline_objective
    gains = {name: found.gain for name, found in own.items()}
    best = max(gains, key=lambda name: gains[name].factor)
    count = max(len(found.cells) for found in own.values())
    opening = f"Over {count} cells ({_names(cells)})"
    aim = f"{goal(race) if race.target is not None else 'the target of its cell'} first on average"
    if gains[best].factor <= 1:
        unit = FEWER[axis].removeprefix("fewer ")
        rest = "; ".join(f"{name} {_short(gains[name])}" for name in _ordered(gains))
        text = f"{opening}, {base} reached {aim}. Speed-up over it in {unit}: {rest}{_count(own[best])}."
    else:
        lead = gains.pop(best)
        doubt = ", unresolved" if lead.direction == "unresolved" else ""
        others = "".join(f"; {name} {_short(gains[name])}" for name in _ordered(gains))
        gain = f"{factor(lead.factor)}x {FEWER[axis]} than {base} in the same cell"
        ends = f"{interval(lead.low, lead.high)}{doubt}{_count(own[best])}"
        text = f"{opening}, {best} reached {aim}: {gain} {ends}{others}."
    return text + _disagreement(cells, own, axis)


def _per_cell(race: Race, cells: Sequence[Workload], axis: str) -> str:
    unit = FEWER[axis].removeprefix("fewer ")
    named = "; ".join(f"{cell.label}: {_of_cell(cell, axis)}" for cell in cells[:MOST_NAMED])
    more = f"; {len(cells) - MOST_NAMED} more cells in the table" if len(cells) > MOST_NAMED else ""
    aim = f" to {goal(race)}" if race.target is not None else ""
    return f"Speed-up{aim} in {unit} over {race.reference} (95 %). {named}{more}."


def _of_cell(cell: Workload, axis: str) -> str:
    gains = {name: gain for (on, name), gain in cell.speedups.items() if on == axis}
    if not gains:
        return f"no comparison in {FEWER[axis].removeprefix('fewer ')}"
    return ", ".join(f"{name} {_short(gains[name])} (n = {gains[name].n})" for name in _ordered(gains))


def _disagreement(cells: Sequence[Workload], own: Mapping[str, PooledSpeedup], axis: str) -> str:
    """Name the objectives that are faster in one cell and slower in another: a mean describes neither."""
    texts = []
    for name in own:
        ways = [gain.direction for cell in cells if (gain := cell.speedups.get((axis, name)))]
        faster, slower = ways.count("faster"), ways.count("slower")
        if faster and slower:
            texts.append(f"{name} is faster in {faster} of {len(ways)} cells and slower in {slower}")
    return f" The cells disagree: {'; '.join(texts)}." if texts else ""


def _silent(cells: Sequence[Workload]) -> str:
    silent = sum(bool(cell.why) for cell in cells)
    verb = "is" if silent == 1 else "are"
    return f" {silent} of {len(cells)} cells {verb} not compared: see Speed-up by cell." if silent else ""


def _ordered(gains: Mapping[str, Speedup]) -> list[str]:
    return sorted(gains, key=lambda name: -(gains[name].estimate or 0))


def _names(cells: Sequence[Workload]) -> str:
    labels = [cell.label for cell in cells]
    more = f" and {len(labels) - MOST_NAMED} more" if len(labels) > MOST_NAMED else ""
    return "; ".join(labels[:MOST_NAMED]) + more


def _short(gain: Speedup) -> str:
    if gain.estimate is None:
        return "undefined: every pair of times is only bounded"
    ends = interval(gain.low, gain.high) or "without an interval"
    return f"{factor(gain.estimate)}x {ends}, {gain.direction}"


def _count(pooled: PooledSpeedup) -> str:
    if pooled.by_seed:
        return f" (95 %, n = {pooled.gain.n} seeds, each averaged over the cells)"
    return f" (95 %, n = {pooled.gain.n} {'pairs' if pooled.gain.paired else 'runs'} in all cells together)"
