"""`flowrace explain`: a method's equations, what it needs, and its defaults by backbone size."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

import click
from rich import box
from rich.markup import escape
from rich.table import Column, Table

from harness.cli.catalogue import defaults, describe, wants
from harness.config import registry
from harness.files.terminal import fitted, show

PUBLISHED_SIZES = ("S", "B", "L", "XL")


@click.command(epilog="Example: flowrace explain self_flow")
@click.argument("method")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for machines.")
def explain(method: str, as_json: bool) -> None:
    """A method's equations, what it needs, and its defaults for SiT-S, B, L and XL."""
    cls = registry.load("method", method)
    needs, settings = wants(defaults(cls, "B").needs()), {s: flat(defaults(cls, s)) for s in PUBLISHED_SIZES}
    source, headline = getattr(cls, "source", ""), getattr(cls, "headline", "")
    if as_json:
        about = {"name": method, "docstring": describe(cls), "needs": needs, "defaults": settings}
        click.echo(json.dumps(about | {"source": source, "headline": headline}, indent=1))
        return
    click.echo(f"{fitted(describe(cls))}\n")
    for word, text in (("Needs", ", ".join(needs) or "nothing"), ("Source", source), ("Headline", headline)):
        if text:
            click.echo(fitted(f"{word}: {text}"))
    show(_defaults_table(settings))


def flat(config: Any) -> dict[str, Any]:
    """The settings of a config by dotted name, its own name left out: what `--set method.NAME=` takes."""
    return dict(_leaves(config.model_dump(mode="json", exclude={"name"}), ()))


def _leaves(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterable[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, name))
        else:
            yield ".".join((*path, name)), value


def _defaults_table(settings: Mapping[str, Mapping[str, Any]]) -> Table:
    columns = (Column("setting", no_wrap=True), Column("default", overflow="fold"))
    shown = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for name in settings[PUBLISHED_SIZES[0]]:
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
