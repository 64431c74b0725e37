"""The terminal card and the JSON object of an audit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from harness.files.terminal import Console
from reports.audit.audit import Audit
from reports.audit.inputs.claim import claim_hash
from reports.audit.words import (
    arrival_summary,
    axis_lines,
    because,
    censored,
    claimed,
    facts,
    mlperf_summary,
    notes,
)
from reports.stats.curves import AXES
from reports.stats.speedup import Speedup

COLOURS = {"supported": "green", "refuted": "red", "inconclusive": "yellow"}
WIDTH = 80


def audit_json(found: Audit) -> dict[str, Any]:
    """Return the JSON object of an audit. Open ends of intervals and missing values are null."""
    own = found.gain
    row = {
        "name": found.claim.name,
        "verdict": found.verdict,
        "reasons": [str(reason) for reason in found.reasons],
        "direction": own.direction if own else "unresolved",
        "axes": {axis: _ends((found.gains or {}).get(axis)) for axis in AXES},
        "n_pairs": found.n_pairs,
        "paired": own.paired if own else None,
        "correlation": own.correlation if own else None,
        "censored": censored(found),
        "target": found.target,
        "factor": found.claim.factor,
        "tolerance": found.claim.tolerance,
        "detectable_factor": found.detectable,
        "more_pairs": found.more_pairs,
        "p": found.p,
        "adjusted": {"verdict": found.adjusted, "p": found.adjusted_p},
        "slopes": dict(found.slopes or {}),
        "first_crossing": _ends(found.first),
        "dual": _ends(found.dual.gain) | {"step": found.dual.step} if found.dual else None,
        "by_target": [{"target": target} | _ends(one) for target, one in found.curve],
        "reached": arrival_summary(found),
        "mlperf": mlperf_summary(found),
        "labels": {arm: found.shown(arm) for arm in (found.claim.baseline, found.claim.candidate)},
        "claim_hash": claim_hash(found.claim),
        "registration": found.standing,
        "notes": notes(found),
    }
    return row if found.claim.sequential is None else row | _looks(found)


def _looks(found: Audit) -> dict[str, Any]:
    """Return the looks at a sequential claim, and the chance of a decision by the further ones."""
    return {
        "looks": [
            _ends(one.gain) | {"n": one.n, "critical": _finite(one.critical), "verdict": one.verdict}
            for one in found.looks
        ],
        "prospects": [{"n": n, "chance": chance} for n, chance in found.prospects.items()],
    }


def print_cards(audits: Sequence[Audit]) -> None:
    """Print one card per claim, and a table of verdicts for several claims; 80 columns wide in a pipe."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    parts = [card(found) for found in audits] + ([_family(audits)] if len(audits) > 1 else [])
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    console.out("\n".join(line.rstrip() for line in captured.get().splitlines()), highlight=False)


def card(found: Audit) -> RenderableType:
    """Return the card: claim, verdict with reasons, axes, facts and notes."""
    parts: list[RenderableType] = [
        Text(found.claim.name, style="bold"),
        Text(f'"{claimed(found)}"'),
        Text.assemble((found.verdict.upper(), f"bold {COLOURS[found.verdict]}"), f"  {because(found)}"),
        Padding(_axes(found), (1, 0)),
        *(Text(line) for line in facts(found)),
        *(_item(note) for note in notes(found)),
        Text(""),
    ]
    return Group(*parts)


def _axes(found: Audit) -> Table:
    table = Table("", "speed-up", "interval", "", box=None, padding=(0, 2, 0, 0), header_style="dim")
    for line in axis_lines(found):
        name = Text(line.name + " *" * line.claimed, style="bold" if line.claimed else "")
        table.add_row(name, line.speedup, line.interval, line.direction)
    return table


def _ends(gain: Speedup | None) -> dict[str, float | None]:
    if gain is None:
        return {"speedup": None, "low": None, "high": None}
    high = None if gain.high is None or math.isinf(gain.high) else gain.high
    return {"speedup": gain.estimate, "low": gain.low or None, "high": high}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _family(audits: Sequence[Audit]) -> Table:
    table = Table(
        "claim", "raw", "p", "adjusted", "p (Holm)", box=None, padding=(0, 2, 0, 0), header_style="dim"
    )
    for found in audits:
        p, adjusted = ("" if value is None else f"{value:.2g}" for value in (found.p, found.adjusted_p))
        row = (found.verdict, p, found.adjusted or "", adjusted)
        table.add_row(Text(found.claim.name), *row)
    return table


def _item(note: str) -> Table:
    """Return a list item whose lines are indented past the dash."""
    item = Table.grid(padding=(0, 1, 0, 0))
    item.add_row("-", Text(note))
    return item
