"""The picture of the architecture, drawn from the table of the import order in
tests/project/test_imports.py."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "tests" / "project" / "test_imports.py"
ROW, HEAD, WIDTH, GAP = 30, 34, 300, 80
SUMMARIES = {
    "flowrace": "the Python front door",
    "sweeps": "studies, plans, launchers",
    "methods": "one objective a file",
    "harness": "the equal footing",
    "reports": "records to answers, no torch",
    "metrics": "distances and networks",
}
COLUMNS = (("sweeps", "methods"), ("flowrace", "harness"), ("reports", "metrics"))
STYLE = (
    "text{font:12px sans-serif;fill:#1d2733}.name{font-weight:bold;font-size:15px}.note{fill:#5a6672}"
    ".package{fill:#f3f6fa;stroke:#8fa3b8}.room{fill:#fff;stroke:#b9c6d3}"
    ".arrow{stroke:#35506b;stroke-width:1.6;fill:none;marker-end:url(#head)}"
)


def table(name: str) -> Any:
    """Return a constant of the import test from its source."""
    for node in ast.parse(TABLE.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == name for target in node.targets):
            return eval(compile(ast.Expression(node.value), TABLE.name, "eval"), {"set": set})
    raise LookupError(f"{TABLE} has no {name}")


def svg() -> str:
    """Return the picture: one box per package, with its rooms in rows; a room imports rooms of lower rows."""
    order, borders = table("ORDER"), table("BORDERS")
    places = dict(_places(order))
    height = max(y + h for _, y, h in places.values()) + 40
    width = 3 * WIDTH + 2 * GAP + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        "<title>Packages, their rooms, and what imports what</title>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="head" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto">'
        '<path d="M0 0 9 4 0 8z" fill="#35506b"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        '<text class="note" x="20" y="20">An arrow means "imports". '
        "In a package, a room imports only rooms in the rows below it.</text>",
    ]
    for package, (x, y, h) in places.items():
        parts += _package(package, order[package], x, y, h)
    for package, allowed in borders.items():
        targets = {name.partition(".")[0] for name in allowed}
        parts += [_arrow(places[package], places[target]) for target in sorted(targets)]
    return "\n".join([*parts, "</svg>", ""])


def _places(order: dict[str, Any]) -> Iterator[tuple[str, tuple[int, int, int]]]:
    """Yield each package with x, y and height of its box."""
    for column, packages in enumerate(COLUMNS):
        y = 34
        for package in filter(order.__contains__, packages):
            height = HEAD + ROW * len(order[package]) + 10
            yield package, (20 + column * (WIDTH + GAP), y, height)
            y += height + 40


def _package(name: str, rows: list[set[str]], x: int, y: int, height: int) -> Iterator[str]:
    yield f'<rect class="package" x="{x}" y="{y}" width="{WIDTH}" height="{height}" rx="6"/>'
    yield f'<text class="name" x="{x + 10}" y="{y + 22}">{name}</text>'
    yield f'<text class="note" x="{x + 90}" y="{y + 22}">{SUMMARIES[name]}</text>'
    # The table starts with the lowest row, the picture with the highest.
    for number, rooms in enumerate(reversed(rows)):
        labels = [_label(room) for room in sorted(rooms)]
        # A box is as wide as its label needs in proportion to the other labels of the row.
        share = (WIDTH - 20) / sum(len(label) + 4 for label in labels)
        left, top = x + 10.0, y + HEAD + number * ROW
        for label in labels:
            side = share * (len(label) + 4)
            size = f'width="{side - 4:.0f}" height="{ROW - 5}"'
            yield f'<rect class="room" x="{left:.0f}" y="{top}" {size} rx="4"/>'
            yield f'<text x="{left + 6:.0f}" y="{top + 17}">{label}</text>'
            left += side


def _label(room: str) -> str:
    package, _, folder = room.partition(".")
    return folder.replace(".", "/") or {"methods": "one file a method"}.get(package, "public names")


def _arrow(start: tuple[int, int, int], end: tuple[int, int, int]) -> str:
    """Return an arrow between the facing sides of two boxes, horizontal if possible."""
    if start[0] == end[0]:
        middle = start[0] + WIDTH // 2
        return f'<path class="arrow" d="M{middle} {start[1] + start[2]} L{middle} {end[1]}"/>'
    forward = start[0] < end[0]
    x1, x2 = (start[0] + WIDTH, end[0]) if forward else (start[0], end[0] + WIDTH)
    y1, y2 = start[1] + HEAD // 2, end[1] + HEAD // 2
    if end[1] <= y1 <= end[1] + end[2]:
        y2 = y1
    elif start[1] <= y2 <= start[1] + start[2]:
        y1 = y2
    return f'<path class="arrow" d="M{x1} {y1} L{x2} {y2}"/>'


if __name__ == "__main__":
    print(svg(), end="")
