"""The rendering of a section from its template.

A section is a function `section(report) -> Markup | None`, called in `page.body`; None leaves it out. Its
template imports shared macros with `{% from "macros.html.j2" import drawing, gain with context %}`. The
engine escapes all text from users.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from reports.figures import race_figures, svg
from reports.figures.layout import NARROW, WIDE
from reports.pages import tables
from reports.race.race import Race


def render_template(template: str, race: Race, **content: Any) -> Markup:
    """Render a template of `templates/` with the race, its legend and `content`."""
    shared = {"race": race, "legend": legend(race)}
    text = environment().get_template(f"{template}.html.j2").render(**shared, **content)
    return Markup(text)


def drawings(draw: Callable[[float], svg.Picture], widths: Sequence[float] = (WIDE, NARROW)) -> list[Markup]:
    """Return a figure at each of these widths, for the macro `drawing`; a single one serves all pages."""
    return [Markup(svg.inline(draw(width))) for width in widths]


def source(name: str) -> Markup:
    """Return a file of `templates/` without rendering: the style sheet or the script."""
    return Markup((resources.files("reports") / "templates" / name).read_text(encoding="utf-8"))


def legend(race: Race) -> list[dict[str, str]]:
    """Return label, colour variable and dashes of each arm."""
    return [_swatch(index, arm.label) for index, arm in enumerate(race.arms)]


@cache
def environment() -> Environment:
    engine = Environment(
        loader=PackageLoader("reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine.filters["unbroken"] = unbroken
    engine.globals |= {
        "quantity": tables.quantity,
        "digits": tables.digits,
        "axis_names": race_figures.AXIS_NAMES,
    }
    return engine


def unbroken(text: str) -> str:
    """Return a sentence with non-breaking spaces inside intervals and counts."""
    text = re.sub(r"([\[(][^ ,]+), ([^ ,]+[\])])", "\\1,\u00a0\\2", text)
    text = re.sub(r"(\d) %", "\\1\u00a0%", text)
    return re.sub(r"(n =|≤|<=) ", lambda sign: sign[0].replace(" ", "\u00a0"), text)


def _swatch(index: int, label: str) -> dict[str, str]:
    dashes: Sequence[float] = svg.DASHES[index % len(svg.DASHES)]
    return {
        "label": label,
        "colour": f"arm{index % len(svg.ARMS)}",
        "dashes": " ".join(str(2 * d) for d in dashes),
    }
