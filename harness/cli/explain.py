"""`flowrace explain`: a method's equations, what it needs, and its defaults by backbone size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import groupby
from typing import Any

import click
from rich import box
from rich.markup import escape
from rich.table import Column, Table

from harness.cli.method_facts import SIZES, description, facts
from harness.config.options import JSON_OPTION
from harness.files.terminal import fitted, show


@click.command(epilog="Example: flowrace explain self_flow")
@click.argument("method")
@JSON_OPTION
def explain(method: str, as_json: bool) -> None:
    """Print a method's equations, what it needs, and its defaults for SiT-S, B, L and XL."""
    about, equations = facts(method), description(method)
    if as_json:
        found = {"name": method, "docstring": equations, "needs": about.needs, "defaults": about.defaults}
        click.echo(json.dumps(found | {"source": about.source, "headline": about.headline}, indent=1))
        return
    click.echo(f"{fitted(equations)}\n")
    needed = ", ".join(about.needs) or "nothing"
    for word, text in (("Needs", needed), ("Source", about.source), ("Headline", about.headline)):
        if text:
            click.echo(fitted(f"{word}: {text}"))
    show(_defaults_table(about.defaults))


def _defaults_table(settings: Mapping[str, Mapping[str, Any]]) -> Table:
    columns = (Column("setting", no_wrap=True), Column("default", overflow="fold"))
    shown = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for name in settings[SIZES[0]]:
        shown.add_row(escape(name), escape(_by_size({size: given[name] for size, given in settings.items()})))
    return shown


def _by_size(values: Mapping[str, Any]) -> str:
    """
    >>> _by_size({"S": 4, "B": 4, "L": 8}), _by_size({"S": None, "B": None})
    ('4 (S, B), 8 (L)', '-')
    """
    runs = [(value, list(sizes)) for value, sizes in groupby(values, values.__getitem__)]
    said = ["-" if value in (None, "") else str(value) for value, _ in runs]
    if len(runs) == 1:
        return said[0]
    return ", ".join(f"{word} ({', '.join(sizes)})" for word, (_, sizes) in zip(said, runs, strict=True))
