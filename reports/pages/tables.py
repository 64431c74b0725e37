"""The numbers as rows: tidy for machines (CSV, JSON), in units for readers."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

from reports.race.race import Race
from reports.race.run import Run
from reports.race.study_folder import why_ended
from reports.stats.number_format import digits, factor, interval, quantity, unit_of
from reports.stats.speedup import Speedup

COLUMNS = (
    "axis", "method", "baseline", "metric", "target", "n", "time", "time_low", "time_high", "not_reached",
    "reached_at_first_eval", "speedup", "speedup_low", "speedup_high", "pairs", "paired", "censored_baseline",
    "censored_candidate", "correlation", "direction",
)  # fmt: skip
RUN_COLUMNS = (
    "method", "seed", "run", "status", "reason", "metric", "target", "evaluations", "final", "best", "censored",
    "first_step", "steps", "images", "flops", "seconds", "gpu_seconds",
)  # fmt: skip


def rows(race: Race) -> list[dict[str, Any]]:
    """One row for each axis and arm; ends of intervals are None where open or absent, and in natural units."""
    found = []
    for (axis, label), time in race.times.items():
        row = dict.fromkeys(COLUMNS)
        row |= {"axis": axis, "method": label, "baseline": race.baseline, "metric": race.metric}
        row |= {"target": race.target, "n": time.n, "time": time.estimate, "not_reached": time.right}
        row |= {"time_low": _end(time.low), "time_high": _end(time.high), "reached_at_first_eval": time.left}
        gain = race.speedups.get((axis, label))
        if gain is not None:
            row |= {"speedup": gain.estimate, "speedup_low": _end(gain.low), "speedup_high": _end(gain.high)}
            row |= {"pairs": gain.n, "paired": gain.paired, "direction": gain.direction}
            row |= {"censored_baseline": gain.censored_baseline, "correlation": gain.correlation}
            row |= {"censored_candidate": gain.censored_candidate}
        found.append(row)
    return found


def run_rows(race: Race) -> list[dict[str, Any]]:
    """One row for each run, the missing ones included."""
    found = [_run_row(race, run) for run in race.runs]
    for planned in race.missing:
        method, seed = planned.cell.get("method.name", ""), planned.cell.get("seed", "")
        cell = {name: value for name, value in planned.cell.items() if name not in ("method.name", "seed")}
        reason = ", ".join(f"{name} = {value}" for name, value in cell.items())
        row = {"method": method, "seed": seed, "run": planned.id, "status": "missing", "reason": reason}
        found.append(dict.fromkeys(RUN_COLUMNS) | row)
    return found


def to_csv(columns: tuple[str, ...], table: list[dict[str, Any]]) -> str:
    """RFC 4180 with a header; numbers as short as they round-trip, nothing for what is not there."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def cells(race: Race, axis: str) -> list[dict[str, str]]:
    """The rows of one axis as texts for the page: method, time and its interval, speed-up and its interval, reading."""
    found = []
    for arm in race.arms:
        time, gain = race.times.get((axis, arm.label)), race.speedups.get((axis, arm.label))
        if time is None:
            continue
        found.append(
            {
                "method": arm.label,
                "time": ("> " if time.right == time.n else "") + quantity(axis, time.estimate),
                "between": _between(axis, time.low, time.high),
                "n": str(time.n),
                "censored": _censored(time.right, time.left),
                **gain_cells(gain, baseline=arm.label == race.baseline),
            }
        )
    return found


def gain_cells(gain: Speedup | None, *, baseline: bool = False) -> dict[str, str]:
    """A speed-up as texts: factor, interval, n and direction (a class name as well)."""
    if baseline or gain is None or gain.estimate is None:
        said = "baseline" if baseline else "undefined"
        return {"factor": "", "interval": "", "pairs": "", "direction": said}
    pairs = f"n = {gain.n}" + ("" if gain.paired else ", unpaired")
    ends = interval(gain.low, gain.high) or "no interval"
    return {
        "factor": f"{factor(gain.estimate)}×",
        "interval": ends,
        "pairs": pairs,
        "direction": gain.direction,
    }


def _run_row(race: Race, run: Run) -> dict[str, Any]:
    row = dict.fromkeys(RUN_COLUMNS)
    row |= {"method": run.arm, "seed": run.seed, "run": run.record.id, "status": run.record.status}
    row |= {"reason": why_ended(run.record), "metric": race.metric, "target": race.target}
    if run.curve is not None:
        row |= {"evaluations": len(run.curve.steps), "final": float(run.curve.measured[-1])}
        row |= {"best": float(run.curve.measured.min())}
    if run.crossing is not None:
        row |= {"censored": run.crossing.censored or "", "first_step": run.first.step}
        row |= {axis: run.costs.at(axis, run.crossing.step) for axis in RUN_COLUMNS[12:]}
    return row


def _between(axis: str, low: float | None, high: float | None) -> str:
    """An interval of costs in one unit."""
    if low is None or high is None:
        return "no interval"
    size, unit = unit_of(axis, low or high)
    number = (lambda value: f"{value:,.0f}") if axis == "steps" else digits
    left = "(0" if low == 0 else f"[{number(low / size)}"
    return f"{left}, {'∞)' if math.isinf(high) else number(high / size) + ']'} {unit}".rstrip()


def _censored(right: int, left: int) -> str:
    said = [f"{right} not reached"] if right else []
    return ", ".join(said + ([f"{left} at first evaluation"] if left else []))


def _end(value: float | None) -> float | None:
    """An end for machines: None where it is open."""
    return None if value is None or value == 0 or math.isinf(value) else float(value)
