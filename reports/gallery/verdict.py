"""The verdict and the cost of a study in words, from the numbers of its CSV files alone."""

from __future__ import annotations

from collections.abc import Sequence

from reports.gallery.study import ArmRow, ArmTable, GalleryStudy, objective
from reports.stats.number_format import digits, factor, interval, quantity

MOST = 3
"""Arms that a sentence names; the others are counted."""
AXES = ("steps", "flops")
"""The axes of a card, which do not depend on the machine."""
NAMES = {
    "steps": "steps",
    "images": "images",
    "flops": "FLOPs",
    "seconds": "seconds",
    "gpu_seconds": "device seconds",
}


def verdict(table: ArmTable) -> list[str]:
    """Return a sentence an axis: which arms are faster than the baseline, and how many are not."""
    return [_sentence(table, axis) for axis in AXES if table.compared(axis)]


def gain_text(row: ArmRow) -> str:
    """Return a speed-up with its interval, for example `1.44× [1.36, 1.53]`."""
    gain = row.gain
    if gain is None:
        return ""
    if gain.estimate is None:
        ends = interval(gain.low, gain.high)
        return f"no estimate {ends}".rstrip() + (", never reached" if row.not_reached == row.n else "")
    return f"{factor(gain.estimate)}× {interval(gain.low, gain.high)}".rstrip()


def cell_text(cell: str) -> str:
    """Return the number of a cell to three digits; another text as it is."""
    try:
        return digits(float(cell))
    except ValueError:
        return cell


def time_text(row: ArmRow) -> str:
    """Return the mean time to target with its unit; a lower bound if some run never reached it."""
    return ("> " if row.not_reached else "") + quantity(row.axis, row.time)


def cost(study: GalleryStudy) -> str:
    """Return the number of runs, and what the baseline spends up to the target."""
    table = study.main
    parts = [f"{len(table.runs)} runs"] if table.runs else []
    times = {axis: table.baselines(axis) for axis in AXES}
    if all(len(rows) == 1 for rows in times.values()):
        spent = " and ".join(f"{time_text(rows[0])} {_unit(axis)}".rstrip() for axis, rows in times.items())
        parts.append(f"{times['steps'][0].objective} needs {spent} to the target")
    return "; ".join(parts)


def _unit(axis: str) -> str:
    """Return the name of an axis whose quantities have no unit."""
    return "steps" if axis == "steps" else ""


def _sentence(table: ArmTable, axis: str) -> str:
    rows = table.compared(axis)
    kinds = {name: [row for row in rows if _direction(row) == name] for name in ("faster", "slower")}
    kinds["unresolved"] = [row for row in rows if _direction(row) == "unresolved"]
    over = " or ".join(dict.fromkeys(objective(row.baseline) for row in rows))
    faster = kinds.pop("faster")
    head = f"{_named(faster)} faster than {over}" if faster else f"no objective is faster than {over}"
    rest = [f"{len(own)} {kind}" for kind, own in kinds.items() if own]
    pairs = " or ".join(str(n) for n in sorted({row.gain.n for row in rows if row.gain is not None}))
    count = f"{len(rows)} comparison{'s' * (len(rows) != 1)} with n = {pairs} pairs each"
    return f"In {NAMES[axis]}: {'; '.join([head, *rest])} ({count}, without a correction)."


def _named(rows: Sequence[ArmRow]) -> str:
    shown = [f"{row.method} {gain_text(row)}" for row in rows[:MOST]]
    more = [f"{len(rows) - MOST} more"] if len(rows) > MOST else []
    names = ", ".join([*shown, *more])
    return f"{names} {'is' if len(rows) == 1 else 'are'}"


def _direction(row: ArmRow) -> str:
    return "" if row.gain is None else row.gain.direction
