"""The looks of a race as a picture of text: an interval by look, and the factors that satisfy the claim."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sweeps.race.coordinator import ending, interval_text

WIDTH = 44
LONGEST = math.log(64)
"""Ends of intervals extend the scale to a factor of 64 at most."""


def looks_picture(looks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of the picture, claim by claim; empty without a look.

        faster: at least 1.20x
          3 pairs      [--------------o-|-----------]        1.18x [0.97, 1.44]: undecided
          4 pairs                       | [--o--]            1.31x [1.24, 1.38]: supported

    `o` is the estimate, and `|` the claimed factor.
    """
    names = list(dict.fromkeys(seen["hash"] for row in looks for seen in row["claims"]))
    lines: list[str] = []
    for own in names:
        rows = [(row["look"], seen) for row in looks for seen in row["claims"] if seen["hash"] == own]
        # A claim that has ended keeps its last look.
        last = next((i for i, (_, seen) in enumerate(rows) if seen["ended"]), len(rows) - 1)
        lines += _claim_lines(rows[: last + 1])
    return lines


def _claim_lines(rows: Sequence[tuple[int, Mapping[str, Any]]]) -> list[str]:
    seen = rows[0][1]
    low, high = seen["factor"]
    claimed = f"at least {low:.3g}x" if high is None else f"{low:.3g}x to {high:.3g}x"
    bounds = [math.log(low)] + ([] if high is None else [math.log(high)])
    scale = _scale([one for _, one in rows], bounds)
    lines = [f"{seen['name']}: {claimed}"]
    for n, one in rows:
        text = f"{interval_text(one)}: {ending(one)}"
        lines.append(f"  {n:>2} pairs  {_bar(one['speedup'], bounds, scale)}  {text}".rstrip())
    return lines


def _scale(seen: Sequence[Mapping[str, Any]], bounds: Sequence[float]) -> tuple[float, float]:
    """Return the ends of the scale, as logarithms."""
    values = [math.log(value) for one in seen for value in one["speedup"] if value]
    near = [value for value in values if abs(value) <= LONGEST] + list(bounds)
    margin = 0.05 * (max(near) - min(near)) or 0.05
    return min(near) - margin, max(near) + margin


def _bar(speedup: Sequence[float | None], bounds: Sequence[float], scale: tuple[float, float]) -> str:
    """Return one interval on the scale; an end beyond it is an arrow."""
    estimate, low, high = speedup
    cells = [" "] * WIDTH

    def place(value: float) -> int:
        share = (value - scale[0]) / (scale[1] - scale[0])
        return min(max(round(share * (WIDTH - 1)), 0), WIDTH - 1)

    if estimate is not None and low is not None:
        left = place(math.log(low)) if low > 0 else 0
        right = place(math.log(high)) if high is not None else WIDTH - 1
        cells[left : right + 1] = "-" * (right + 1 - left)
        cells[left] = "[" if low > 0 and math.log(low) >= scale[0] else "<"
        cells[right] = "]" if high is not None and math.log(high) <= scale[1] else ">"
    for bound in bounds:
        cells[place(bound)] = "|"
    if estimate is not None:
        cells[place(math.log(estimate))] = "o"
    return "".join(cells)
