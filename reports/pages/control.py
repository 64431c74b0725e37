"""State and action as they are read from hidden layers: one row per layer, one column group per arm."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from reports.analysis.control import TARGETS, Control, Score
from reports.analysis.report import RaceReport
from reports.pages import tables
from reports.pages.section import render_template


def control_section(report: RaceReport) -> Markup | None:
    """Return the section; None for a race without a table of control."""
    found = report.control
    if found is None:
        return None
    return render_template(
        "control",
        report.race,
        arms=[(arm, _about(found, arm)) for arm in found.arms],
        targets=TARGETS,
        rows=[
            (row, [_cell(found, arm, row, t) for arm in found.arms for t in TARGETS]) for row in found.rows
        ],
        protocol=found.protocol,
        videos=" to ".join(map(str, dict.fromkeys((found.videos[0], found.videos[-1])))),
        single=1 in found.seeds.values(),
        absent=found.absent,
    )


def text(value: float) -> str:
    """
    >>> text(0.5), text(-0.12345), text(-0.0001)
    ('0.500', '−0.123', '0.000')
    """
    return f"{value:.3f}".replace("-0.000", "0.000").replace("-", "−")


def _cell(found: Control, arm: str, row: str, target: str) -> dict[str, Any] | None:
    score = found.scores.get((arm, row, target))
    return score and {"best": found.best(arm, target) == row, **_texts(score)}


def _texts(score: Score) -> dict[str, str]:
    return {"mean": text(score.mean), "ends": f"[{text(score.low)}, {text(score.high)}]"}


def _about(found: Control, arm: str) -> str:
    steps = ", ".join(tables.quantity("steps", step) for step in found.steps[arm])
    return f"step {steps}, n = {found.seeds[arm]}"
