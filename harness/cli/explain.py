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
    """Print a method's equations, needs and source, and the defaults of its settings for SiT-S, B, L and XL.

    Change a setting with --set method.SETTING=VALUE.
    """
    about, equations = facts(method), description(method)
    if as_json:
        found = {"name": method, "docstring": equations, "needs": about.needs, "defaults": about.defaults}
        click.echo(json.dumps(found | {"source": about.source, "headline": about.headline}, indent=1))
        return
    click.echo(f"{fitted(equations)}\n")
    needs = ", ".join(about.needs) or "nothing"
    for title, text in (("Needs", needs), ("Source", about.source), ("Headline", about.headline)):
        if text:
            click.echo(fitted(f"{title}: {text}"))
    show(_defaults_table(about.defaults))


def _defaults_table(settings: Mapping[str, Mapping[str, Any]]) -> Table:
    columns = (Column("setting", no_wrap=True), Column("default", overflow="fold"))
    shown = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for name in settings[SIZES[0]]:
        shown.add_row(escape(name), escape(by_size({size: given[name] for size, given in settings.items()})))
    return shown


def by_size(values: Mapping[str, Any]) -> str:
    """Return the values of a setting, with the sizes that they belong to if they differ.

    >>> by_size({"S": 4, "B": 4, "L": 8}), by_size({"S": None, "B": None})
    ('4 (S, B), 8 (L)', '-')
    """
    groups = [(value, list(sizes)) for value, sizes in groupby(values, values.__getitem__)]
    texts = ["-" if value in (None, "") else str(value) for value, _ in groups]
    if len(groups) == 1:
        return texts[0]
    return ", ".join(f"{text} ({', '.join(sizes)})" for text, (_, sizes) in zip(texts, groups, strict=True))
