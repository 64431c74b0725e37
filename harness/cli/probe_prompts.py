"""`flowrace probe --prompts`: the share of samples that obey their prompt under the noise of another one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table

from harness.files.terminal import show
from harness.train.trained_run import spec_of_run

if TYPE_CHECKING:
    from harness.probing.prompts import Change, SwappedPrompts
    from metrics import Value

LEAST = 2
"""The fewest pairs: a sample needs another one to exchange prompts with."""


def of_run(path: Path, step: int | None, most: int, overrides: tuple[str, ...], as_json: bool) -> None:
    """Measure a checkpoint and print the table; nothing is written."""
    from harness.probing.prompts import swap_prompts
    from harness.runtime.distributed import pick_device
    from harness.runtime.environment import prepare

    spec = spec_of_run(path, overrides)
    prepare(spec.runtime.threads)
    pairs = max(min(most, spec.eval.samples), LEAST)
    found = swap_prompts(path, spec, step, pairs, pick_device(spec.runtime.device))
    if as_json:
        click.echo(json.dumps(_plain(path, found)))
        return
    show(_table(found))
    for line in _lines(found):
        click.echo(line)


def _plain(path: Path, found: SwappedPrompts) -> dict[str, Any]:
    """Return the measurement as JSON."""
    rows = {
        row.attribute: {name: _row(value) for name, value in row._asdict().items() if name != "attribute"}
        for row in found.obedience
    }
    return {
        "run": path.name,
        "step": found.step,
        "pairs": found.pairs,
        "prompts": list(found.prompts),
        "obeys": rows,
        "other_prompt": {name: _row(value) for name, value in found.other_prompt._asdict().items()},
        "other_noise": {name: _row(value) for name, value in found.other_noise._asdict().items()},
    }


def _row(value: Value | None) -> dict[str, Any] | None:
    """Return a value with its interval and n as JSON."""
    return None if value is None else asdict(value)


def _table(found: SwappedPrompts) -> Table:
    table = Table(
        "obeys",
        "the prompt shown",
        "the other prompt",
        "real, the other prompt",
        "n",
        box=None,
        padding=(0, 1),
    )
    for row in found.obedience:
        values = row.shown, row.other, row.real
        n = "-" if row.shown is None else str(row.shown.n)
        table.add_row(row.attribute, *(escape(_cell(value)) for value in values), n)
    return table


def _lines(found: SwappedPrompts) -> list[str]:
    first, second = found.prompts
    return [
        f"same noise, other prompt: {_change(found.other_prompt)}",
        f"same prompt, other noise: {_change(found.other_noise)}",
        f'step {found.step}, {found.pairs} pairs of held-out captions, the first "{first}" and "{second}"; '
        "brackets are 95 % intervals",
    ]


def _change(change: Change) -> str:
    share, distance = change
    return f"{_cell(share)} of the samples differ, by {_cell(distance)} of the range of their values"


def _cell(value: Value | None) -> str:
    if value is None:
        return "-"
    return f"{value.mean:.3f}" + ("" if value.low is None else f" [{value.low:.3f}, {value.high:.3f}]")
