"""What every metric says at the end: a table for each, arms below each other, real samples first."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from markupsafe import Markup

from reports.pages.section import render
from reports.race.final_values import finals, real
from reports.race.race import Race
from reports.stats.number_format import digits

COLUMNS = ("metric", "method", "step", "n", "mean", "sd", "low", "high")
KINDS = {
    "held_out": "real samples, held out",
    "train_halves": "real samples, half against half",
    "spoilt": "real samples, spoilt",
}


def rows(race: Race) -> list[dict[str, Any]]:
    """For CSV and JSON; what real samples score stands under `method` as well, without a step."""
    found, scored = [], real(race)
    for metric, group in groupby(finals(race), key=lambda final: final.metric):
        for kind, mean in scored.get(metric, {}).items():
            found.append(dict.fromkeys(COLUMNS) | {"metric": metric, "method": KINDS[kind], "mean": mean})
        for final in group:
            about = {"metric": metric, "method": final.arm, "step": final.step}
            found.append(about | final.over_seeds._asdict())
    return found


def section(race: Race) -> Markup | None:
    """None where the race's own metric is the only one: its last values stand beside the runs."""
    groups = groupby(rows(race), key=lambda row: row["metric"])
    tables = {metric: [_texts(row) for row in group] for metric, group in groups}
    return render("finals", race, tables=tables) if len(tables) > 1 else None


def _texts(row: dict[str, Any]) -> dict[str, str]:
    about = "" if row["n"] is None else f"step {row['step']:,}, n = {row['n']}"
    ends = "" if row["low"] is None else f"[{_signed(row['low'])}, {_signed(row['high'])}]"
    return {"method": row["method"], "about": about, "mean": _signed(row["mean"]), "ends": ends}


def _signed(value: float) -> str:
    return digits(value).replace("-", "−")
