"""The numbers of a report as rows for machines: the columns of its CSV files and the lists of its JSON
object."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from harness.files.csv_cells import inert
from harness.records.record import failure_reason
from reports.race.final_values import FinalValue
from reports.race.race import Race
from reports.race.run import RaceRun
from reports.stats.mlperf import aggregate

Row = dict[str, Any]
"""Values (text, number or None) by column."""

ARM_COLUMNS = (
    "axis", "method", "baseline", "metric", "target", "n", "time", "time_low", "time_high", "not_reached",
    "reached_at_first_eval", "speedup", "speedup_low", "speedup_high", "pairs", "paired", "censored_baseline",
    "censored_candidate", "correlation", "direction",
)  # fmt: skip
RUN_COLUMNS = (
    "method", "seed", "run", "status", "reason", "metric", "target", "evaluations", "final", "best",
    "censored", "first_step", "steps", "images", "flops", "seconds", "gpu_seconds",
)  # fmt: skip
FINAL_COLUMNS = ("metric", "method", "step", "n", "mean", "sd", "low", "high")
REAL_SAMPLES = {
    "held_out": "real samples, held out",
    "train_halves": "real samples, half against half",
    "spoilt": "real samples, spoilt",
}


def arm_rows(race: Race) -> list[Row]:
    """Return one row per axis and arm, in natural units; open or absent ends of intervals are None."""
    rows = []
    for (axis, label), time in race.times.items():
        row: Row = dict.fromkeys(ARM_COLUMNS)
        base = race.cell_of(label).baseline
        row |= {"axis": axis, "method": label, "baseline": base, "metric": race.metric}
        row |= {
            "target": race.target_of(label),
            "n": time.n,
            "time": time.estimate,
            "not_reached": time.right,
        }
        row |= {"time_low": _end(time.low), "time_high": _end(time.high), "reached_at_first_eval": time.left}
        gain = race.speedups.get((axis, label))
        if gain is not None:
            row |= {"speedup": gain.estimate, "speedup_low": _end(gain.low), "speedup_high": _end(gain.high)}
            row |= {"pairs": gain.n, "paired": gain.paired, "direction": gain.direction}
            row |= {"censored_baseline": gain.censored_baseline, "correlation": gain.correlation}
            row |= {"censored_candidate": gain.censored_candidate}
        rows.append(row)
    return rows


def mlperf_rows(race: Race) -> list[Row]:
    """Return MLPerf's aggregate by axis and arm, without a value and with the reason if it is invalid.

    Arms without a run that counts, and races without a target, have none.
    """
    found = []
    for axis in race.axes:
        for arm in race.arms:
            runs = race.of(arm.label)
            times = [run.time(axis) for run in runs if run.crosses]
            lost = sum(not run.evaluated and run.record.status == "failed" for run in runs)
            missing = len(runs) - len(times) - lost + sum(arm.holds(one.values) for one in race.missing)
            if times:
                own = aggregate(times, lost=lost, missing=missing)
                about = {"axis": axis, "method": arm.label, "n": own.n, "time": own.value}
                found.append(about | {"invalid": own.why or None})
    return found


def run_rows(race: Race) -> list[Row]:
    """Return one row per run, including planned runs that do not exist yet."""
    rows = [_run_row(race, run) for run in race.runs]
    for planned in race.missing:
        method, seed = planned.values.get("method.name", ""), planned.values.get("seed", "")
        rest = {name: value for name, value in planned.values.items() if name not in ("method.name", "seed")}
        row: Row = dict.fromkeys(RUN_COLUMNS)
        row |= {"method": method, "seed": seed, "run": planned.id, "status": "missing"}
        rows.append(row | {"reason": ", ".join(f"{name} = {value}" for name, value in rest.items())})
    return rows


def final_value_rows(
    final_values: Sequence[FinalValue], real_samples: Mapping[str, Mapping[str, float]]
) -> list[Row]:
    """Return one row per metric and arm.

    Each metric begins with the scores of real samples, whose kind is in the column `method`, without a step.
    """
    rows = []
    for metric, group in groupby(final_values, key=lambda final: final.metric):
        for kind, mean in real_samples.get(metric, {}).items():
            empty: Row = dict.fromkeys(FINAL_COLUMNS)
            rows.append(empty | {"metric": metric, "method": REAL_SAMPLES[kind], "mean": mean})
        for final in group:
            about = {"metric": metric, "method": final.arm, "step": final.step}
            rows.append(about | final.over_seeds._asdict())
    return rows


def to_csv(columns: tuple[str, ...], table: Sequence[Row]) -> str:
    """Return CSV text (RFC 4180) with a header; numbers have the digits needed to round-trip, absent values
    are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: inert(value) for name, value in row.items()} for row in table)
    return text.getvalue()


def _run_row(race: Race, run: RaceRun) -> Row:
    row: Row = dict.fromkeys(RUN_COLUMNS)
    status = run.record.status
    reason = failure_reason(run.record) if status in ("failed", "stopped") else ""
    if (early := run.record.early_end) is not None:
        reason = str(early)
    row |= {"method": run.arm, "seed": run.seed, "run": run.record.id, "status": status}
    row |= {"reason": reason, "metric": race.metric, "target": race.target_of(run.arm)}
    if run.evaluated:
        final = float(run.curve.measured[-1]) if early is None else None
        row |= {"evaluations": len(run.curve.steps), "final": final}
        row |= {"best": float(run.curve.measured.min())}
    if run.crosses:
        row |= {"censored": run.crossing.censored or "", "first_step": run.first_crossing.step}
        logged = [axis for axis in RUN_COLUMNS[12:] if axis in run.costs.totals]
        row |= {axis: run.costs.at(axis, run.crossing.step) for axis in logged}
    return row


def _end(value: float | None) -> float | None:
    """Return an end of an interval, None if it is open."""
    return None if value is None or value == 0 or math.isinf(value) else float(value)
