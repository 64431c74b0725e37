"""The command `flowrace report diff`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.config.options import JSON_OPTION
from reports.cli.options import AXES, BASELINE, METRIC, TARGET

if TYPE_CHECKING:
    from rich.table import Table

    from reports.analysis.diff import Change, Difference, Estimate

NAMES = {"speedup": "speed-up", "time": "time", "final": "last value"}
MOST_NAMED = 6


@click.command("diff", epilog="Example: flowrace report diff runs/before runs/after --axis steps --json")
@click.argument("before", metavar="A", type=click.Path(path_type=Path))
@click.argument("after", metavar="B", type=click.Path(path_type=Path))
@click.option("--axis", help=f"Show only this axis in the table: {', '.join(AXES[:-1])} or {AXES[-1]}.")
@METRIC
@TARGET
@BASELINE
@JSON_OPTION
def diff(before: Path, after: Path, axis: str | None, as_json: bool, **asked: Any) -> None:
    """Show how two reports differ: runs, arms, numbers, specs and evaluation protocols.

    A and B are folders of runs, or the CSV files that `flowrace report` wrote. A number moved `outside` if
    its two intervals are disjoint, `within` if each interval contains the other's estimate, and `between`
    otherwise.
    """
    from harness.errors import unknown
    from reports.analysis.diff import compare_reports
    from reports.cli.diff_sides import read_side

    if axis is not None and axis not in AXES:
        raise unknown("axis", axis, AXES)
    found = compare_reports(read_side(before, **asked), read_side(after, **asked))
    changes = [change for change in found.changes if axis in (None, change.axis) or not change.axis]
    if as_json:
        click.echo(json.dumps(plain(found, changes), indent=1, allow_nan=False))
        return
    for line in lines(found):
        click.echo(line)
    changed = [change for change in changes if change.moved != "same"]
    if changed:
        _show(_table(changed))
    click.echo(_count(changes))


def plain(found: Difference, changes: Sequence[Change]) -> dict[str, Any]:
    """Return the difference as a JSON object. Open and missing ends of intervals are null."""
    return {
        "about": {key: list(values) for key, values in found.about.items()},
        "shared": list(found.shared),
        "only_a": list(found.only_before),
        "only_b": list(found.only_after),
        "status": {run: list(pair) for run, pair in found.status.items()},
        "arms_only_a": list(found.arms_before),
        "arms_only_b": list(found.arms_after),
        "changes": [_plain_change(change) for change in changes],
        "specs": [{"field": path, "a": list(a), "b": list(b)} for path, a, b in found.specs],
        "protocols": [{"field": path, "a": list(a), "b": list(b)} for path, a, b in found.protocols],
    }


def lines(found: Difference) -> Iterator[str]:
    """Yield the differences that are not numbers, one line each."""
    yield (
        f"{len(found.shared)} runs in both, {len(found.only_before)} only in A, "
        f"{len(found.only_after)} only in B"
        + (f"; {len(found.status)} with a different status" if found.status else "")
    )
    for key, (a, b) in found.about.items():
        yield f"{key}: {_value(a)} -> {_value(b)}"
    for name, arms in (("A", found.arms_before), ("B", found.arms_after)):
        if arms:
            yield f"arms only in {name}: {_some(arms)}"
    for kind, fields in (("spec", found.specs), ("protocol", found.protocols)):
        for path, a, b in fields:
            yield f"{kind}, {path}: {_some(map(_value, a))} -> {_some(map(_value, b))}"
    if found.protocols:
        yield (
            "The runs were evaluated under different protocols: "
            "values and times of A and B cannot be compared."
        )


def _plain_change(change: Change) -> dict[str, Any]:
    row = {"what": change.what, "axis": change.axis or None, "arm": change.arm}
    return row | {
        "a": _plain_number(change.before),
        "b": _plain_number(change.after),
        "ratio": change.ratio,
        "moved": change.moved,
    }


def _plain_number(number: Estimate) -> dict[str, Any]:
    high = None if number.high is None or math.isinf(number.high) else number.high
    return {"value": number.value, "low": number.low or None, "high": high, "n": number.n}


def _table(changes: Sequence[Change]) -> Table:
    from rich.markup import escape
    from rich.table import Column, Table

    table = Table(
        "", "axis", Column("arm", overflow="fold"), "A", "B", "B / A", "moved", box=None, padding=(0, 1)
    )
    for change in changes:
        words = NAMES[change.what], change.axis, change.arm, _number(change.before), _number(change.after)
        table.add_row(*map(escape, words), f"{change.ratio:.3f}", change.moved)
    return table


def _number(number: Estimate) -> str:
    if number.low is None or number.high is None:
        return f"{number.value:.4g}"
    left = "(0" if number.low == 0 else f"[{number.low:.4g}"
    right = "∞)" if math.isinf(number.high) else f"{number.high:.4g}]"
    return f"{number.value:.4g} {left}, {right}"


def _show(table: Table) -> None:
    """Print the table: wrapped in a terminal, one line per row in a pipe or a file."""
    from harness.files.terminal import Console

    console = Console(highlight=False)
    wide = Console(width=10_000)
    (console if console.is_terminal else Console(width=wide.measure(table).maximum, highlight=False)).print(
        table
    )


def _count(changes: Sequence[Change]) -> str:
    states = [change.moved for change in changes]
    kinds = [kind for kind in ("same", "within", "between", "outside", "unknown") if kind in states]
    return f"{len(states)} numbers in both: " + ", ".join(f"{states.count(k)} {k}" for k in kinds)


def _some(words: Any) -> str:
    words = list(words)
    more = f" and {len(words) - MOST_NAMED} more" if len(words) > MOST_NAMED else ""
    return ", ".join(words[:MOST_NAMED]) + more


def _value(value: Any) -> str:
    return "-" if value in (None, "") else str(value)
