"""The section on where the gain comes from: the gradients of flow loss and alignment, separately."""

from __future__ import annotations

from functools import partial
from typing import Any

from markupsafe import Markup

from reports.analysis.report import RaceReport
from reports.figures.gradient_figures import draw_gradients
from reports.pages.section import drawings, render_template
from reports.race.gradients import DEAD, FEWEST, FLAT, GradientArm
from reports.stats.means import Mean
from reports.stats.number_format import digits


def gradient_section(report: RaceReport) -> Markup | None:
    """Return the section; None if no run logged its gradients."""
    found = report.gradients
    if found is None:
        return None
    return render_template(
        "gradients",
        report.race,
        pictures=drawings(partial(draw_gradients, report.race, found)),
        rows=[_row(arm) for arm in found.arms],
        features=[row for arm in found.arms for row in _norm_rows(arm)],
        seconds=percent(found.seconds),
        flops=percent(found.flops),
        single=any(arm.means["flow"].n == 1 for arm in found.arms if "flow" in arm.means),
    )


def reading(arm: GradientArm) -> str:
    """Return what the numbers of an arm mean, in a sentence."""
    if arm.state == "none":
        return "no auxiliary term: norms only"
    if arm.state == "off":
        return "alignment has ended by its schedule"
    if arm.state == "undecided":
        text = f"undecided: the interval of its share contains {percent(DEAD)}"
    elif arm.state == "dead":
        text = f"dead: below {percent(DEAD)} of the gradient, alignment no longer steers"
    else:
        text = _steering(arm)
    text += _direction(arm.means.get("cosine"))
    return text + (f"; {' and '.join(arm.collapsed)} has collapsed" if arm.collapsed else "")


def _steering(arm: GradientArm) -> str:
    """Return how an arm's alignment steers, and whether its loss shows it."""
    share = percent(arm.means["share"].mean)
    if arm.trend == "flat":
        return f"steady: the loss is flat, but {share} of the gradient still steers"
    about = {
        "changes": "its loss still changes",
        "undecided": f"whether its loss is flat is undecided: the interval of its change contains "
        f"{percent(FLAT)} up or down",
        "single": "whether its loss is flat is undecided: the change of a single seed has no interval",
        "unknown": f"whether its loss is flat is unknown, which takes {FEWEST} readings of it",
    }
    return f"steers with {share} of the gradient, and {about[arm.trend]}"


def percent(share: float) -> str:
    """Return a share in percent, to two or three digits.

    >>> percent(0.01), percent(0.1234), percent(0.00042)
    ('1 %', '12.3 %', '0.042 %')
    """
    return f"{100 * share:.3g} %"


def _direction(cosine: Mean | None) -> str:
    """Return how the two gradients relate, if the interval of their cosine excludes 0."""
    if cosine is None or cosine.low is None or cosine.high is None or cosine.low <= 0 <= cosine.high:
        return ""
    return "; it opposes the flow loss" if cosine.mean < 0 else "; it agrees with the flow loss"


def _row(arm: GradientArm) -> dict[str, Any]:
    cells = {"loss": _cell(arm.means.get("loss"))}
    cells |= {name: _cell(arm.means.get(name), percent) for name in ("share", "network_share")}
    cells["cosine"] = _cell(arm.means.get("cosine"), lambda value: f"{value:+.2f}")
    return {
        "arm": arm.arm,
        "n": max((mean.n for mean in arm.means.values()), default=0),
        "window": f"steps {arm.first:,} to {arm.last:,}",
        "blocks": arm.blocks,
        "reading": reading(arm),
        "change": _cell(arm.means.get("change"), lambda value: f"{100 * value:+.2g} %"),
        **cells,
    }


def _norm_rows(arm: GradientArm) -> list[dict[str, Any]]:
    """Return the norms of both gradients, and norm and sameness of features by place."""
    names = {"flow": "gradient of the flow loss", "auxiliary": "gradient of alignment"}
    found = [
        {"arm": arm.arm, "place": place, "norm": _cell(arm.means[name]), "sameness": None}
        for name, place in names.items()
        if name in arm.means
    ]
    return found + [
        {"arm": arm.arm, "place": place, "norm": _cell(norm), "sameness": _cell(sameness)}
        for place, (norm, sameness) in arm.features.items()
    ]


def _cell(mean: Mean | None, form: Any = digits) -> dict[str, str] | None:
    """Return a mean and its interval as texts."""
    if mean is None:
        return None
    ends = "" if mean.low is None or mean.high is None else f"[{form(mean.low)}, {form(mean.high)}]"
    return {"mean": form(mean.mean).replace("-", "−"), "ends": ends.replace("-", "−")}
