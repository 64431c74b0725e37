"""`flowrace success`: the recorded success of two arms on the same starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.config.options import JSON_OPTION, examples

if TYPE_CHECKING:
    from reports.analysis.success import Comparison


@click.command(
    epilog=examples(
        "flowrace success runs/a/0123456789ab --against runs/b/0123456789cd",
        "flowrace success A0 A1 A2 --against B0 --against B1 --against B2 --task open-and-place",
    )
)
@click.argument("first", metavar="RUN|ROLLOUT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--against",
    "second",
    metavar="RUN|ROLLOUT",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="Run or rollout of the second arm; may be repeated, once for each training seed.",
)
@click.option("--task", metavar="TASK", help="Task to compare, if runs have rollouts in several.")
@JSON_OPTION
def success(first: tuple[Path, ...], second: tuple[Path, ...], task: str | None, as_json: bool) -> None:
    """Compare the recorded success of two arms, start by start.

    An arm is one run, or several that differ in their training seed. Two networks are compared by the exact
    McNemar test. Several training seeds have an interval over both levels, training seeds and starts.
    """
    from reports.analysis.success import compare, read_arm

    found = compare(read_arm(first, task), read_arm(second, task))
    if as_json:
        click.echo(json.dumps({one.name: _table(one) for one in found}))
        return
    for one in found:
        click.echo("\n".join(_lines(one)))


def _table(one: Comparison) -> dict[str, Any]:
    return {
        "first": one.first._asdict(),
        "second": one.second._asdict(),
        "difference": one.difference._asdict(),
        "pairs": {str(seed): pair._asdict() for seed, pair in one.pairs.items()},
        "direction": one.direction,
    }


def _lines(one: Comparison) -> list[str]:
    """Return the lines of a comparison: shares, difference, each pair of networks, the answer."""
    n = f"{one.first.seeds} training seeds x {one.first.starts} starts"
    lines = [f"{one.name} ({n})"]
    values = {"first": one.first, "second": one.second, "difference": one.difference}
    for name, value in values.items():
        sign = "+" if name == "difference" else ""
        interval = "" if value.low is None else f" ({value.low:{sign}.3f} to {value.high:{sign}.3f})"
        lines.append(f"  {name:<12}{value.mean:{sign}.3f}{interval}")
    for seed, pair in one.pairs.items():
        lines.append(
            f"  seed {seed:<7}{pair.difference:+.3f} ({pair.low:+.3f} to {pair.high:+.3f}), only the first "
            f"{pair.only_first}, only the second {pair.only_second}, p = {pair.p:.3g}"
        )
    answer = {
        "more": "the first arm succeeds more often",
        "less": "the first arm succeeds less often",
        "unresolved": "the difference is unresolved",
    }[one.direction]
    of = "" if one.first.seeds > 1 else ", for these two networks; other training seeds may differ"
    return [*lines, f"  {answer}{of}"]
