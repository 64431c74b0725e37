"""Matplotlib figures as inline SVG: reproducible bytes, the page's fonts, and colours for light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

INK, MUTED, RULE, PAPER = "#1c1c21", "#6d6d75", "#dedee3", "#fffffe"
ARMS = ("#4b4b53", "#0072b2", "#d55e00", "#009e73", "#bb7398", "#829c2f", "#196ef4", "#6e3f8a")
"""Grey for the baseline, three of Okabe and Ito's colours, and four more. All are distinguishable with every
kind of colour vision."""
ARMS_DARK = ("#b9b9c2", "#56b4e9", "#ff9a4d", "#3fcf9f", "#b378a3", "#fed74d", "#8bf3f3", "#e768cc")
DASHES = ((), (6, 2), (2, 1.6), (7, 2, 1.5, 2), (4, 1.5), (1, 1), (9, 3))
"""One fewer than the colours, so that arms still differ when colours repeat."""
SIZE = 8.5
"""The font size of a page's figures, in points."""
VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", PAPER: "paper"} | {
    c: f"arm{i}" for i, c in enumerate(ARMS)
}
_STYLE: dict[RcKeyType, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "flowrace",
    "text.parse_math": False,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "text.color": INK,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "lines.solid_capstyle": "round",
    "path.simplify": True,
}


@dataclass(frozen=True)
class Look:
    """The look of figures that a command may choose."""

    family: str = "sans-serif"
    """`sans-serif` or `serif`."""
    fonts: tuple[str, ...] = ("DejaVu Sans",)
    """Fonts of that family, the preferred one first."""
    size: float = SIZE
    """Font size in points."""
    legend: bool = False
    """True for files, which have no page around them to explain lines and marks."""


_LOOK: ContextVar[Look] = ContextVar("look", default=Look())  # noqa: B039


def current_look() -> Look:
    """Return the look of the figures that are drawn now."""
    return _LOOK.get()


@contextmanager
def with_look(look: Look) -> Iterator[None]:
    """Draw figures with this look."""
    token = _LOOK.set(look)
    try:
        yield
    finally:
        _LOOK.reset(token)


@contextmanager
def style() -> Iterator[None]:
    """Apply the style of all figures; they are created and written inside this context."""
    look = current_look()
    names = ("font.size", "axes.labelsize", "xtick.labelsize", "ytick.labelsize")
    chosen: dict[Any, Any] = dict.fromkeys(names, look.size)
    chosen |= {"font.family": look.family, f"font.{look.family}": list(look.fonts)}
    with mpl.rc_context({**_STYLE, **chosen}):
        yield


def small() -> float:
    """Return the font size of labels inside axes."""
    return current_look().size * 8 / SIZE


def scaled(inches: float) -> float:
    """Return a length that grows with the font, for example the height of a row of text."""
    return inches * max(current_look().size / SIZE, 0.8)


@dataclass(frozen=True)
class Picture:
    """A figure, its unique name on a page, and a description."""

    figure: Figure
    name: str
    description: str


def inline(picture: Picture) -> str:
    """Return a picture as an `<svg>` element for HTML. Its name makes its ids unique on the page."""
    text, name, description = io.StringIO(), picture.name, picture.description
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with style():
        picture.figure.savefig(text, format="svg", metadata=nothing, transparent=True)
    body = text.getvalue()
    body = body[body.index("<svg") :]
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r"<[^>]+>", lambda tag: _tag(tag[0], name), body)
    body = _grouped(re.sub(r"\n\s*", "\n", body))
    box = re.search(r'viewBox="[^"]*"', body)
    assert box is not None
    head = f'<svg {box[0]} role="img" aria-label="{escape(description)}">'
    return re.sub(r"<svg[^>]*>", lambda _: head, body, count=1).strip()


def _tag(tag: str, name: str) -> str:
    """Return a tag with the page's colours and fonts. Unused ids are dropped, the others prefixed."""
    # A hundredth of a point is finer than any screen or printer.
    tag = re.sub(r"(\.\d\d)\d+", r"\1", tag)
    if len(tag) > 200:
        tag = re.sub(r'd="([^"C]{200,})"', lambda line: f'd="{_line(line[1])}"', tag)
    if ' id="' in tag:
        tag = re.sub(r' id="(?![mp][0-9a-f]{10}")[^"]*"', "", tag)
        tag = re.sub(r'id="([mp][0-9a-f]{10})"', rf'id="{name}-\1"', tag)
    tag = (
        tag.replace("xlink:href", "href")
        .replace('href="#', f'href="#{name}-')
        .replace("url(#", f"url(#{name}-")
    )
    tag = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", tag)
    return re.sub(r"#[0-9a-f]{6}\b", lambda c: _colour(c[0]), tag)


def _line(path: str) -> str:
    """Return the path of a data line in few bytes: a tenth of a point is enough, and points after the first
    need no letter."""
    short = re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), path)
    return re.sub(r"\s*\n(?:L )?", " ", short).strip()


def _grouped(body: str) -> str:
    """Move the common style of consecutive marks or lines to a group around them.

    Otherwise the styles of hundreds of marks would be most of the bytes.
    """
    look = r'( clip-path="[^"]*" style="[^"]*")'
    body = re.sub(rf"(<path [^>]*?{look}/>)\n</g>\n<g>\n(?=<path [^>]*?\2/>)", r"\1\n", body)
    for tag, style_of in (("use", r'( style="[^"]*")'), ("path", look)):
        same = re.compile(rf"<g>\n((?:<{tag} [^>]*?){style_of}/>\n(?:<{tag} [^>]*?\2/>\n)+)</g>")
        body = same.sub(lambda match: f"<g{match[2]}>\n{match[1].replace(match[2], '')}</g>", body)
    return body


def _colour(code: str) -> str:
    return f"var(--{VARIABLES[code]})" if code in VARIABLES else code
