"""The table of probes of state and action: one row per layer, one column group per arm."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from reports.analysis.control import TARGETS, Control, Score
from reports.analysis.report import RaceReport
from reports.pages import tables
from reports.pages.section import render_template


def control_section(report: RaceReport) -> Markup | None:
    """Return the section; None if no finished run was probed."""
    control = report.control
    if control is None:
        return None
    return render_template(
        "control",
        report.race,
        arms=[(arm, _about(control, arm)) for arm in control.arms],
        targets=TARGETS,
        rows=[
            (row, [_cell(control, arm, row, target) for arm in control.arms for target in TARGETS])
            for row in control.rows
        ],
        protocol=control.protocol,
        videos=" to ".join(map(str, dict.fromkeys((control.videos[0], control.videos[-1])))),
        single=1 in control.seeds.values(),
        absent=control.absent,
    )


def text(value: float) -> str:
    """Return a score with three decimals and a typographic minus sign.

    >>> text(0.5), text(-0.12345), text(-0.0001)
    ('0.500', '−0.123', '0.000')
    """
    return f"{value:.3f}".replace("-0.000", "0.000").replace("-", "−")


def _cell(control: Control, arm: str, row: str, target: str) -> dict[str, Any] | None:
    score = control.scores.get((arm, row, target))
    return score and {"best": control.best(arm, target) == row, **_texts(score)}


def _texts(score: Score) -> dict[str, str]:
    return {"mean": text(score.mean), "ends": f"[{text(score.low)}, {text(score.high)}]"}


def _about(control: Control, arm: str) -> str:
    steps = ", ".join(tables.quantity("steps", step) for step in control.steps[arm])
    return f"step {steps}, n = {control.seeds[arm]}"
