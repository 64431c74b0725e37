"""A line of `flowrace doctor`, and how lines are printed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal, NamedTuple

import click
from rich.table import Table
from rich.text import Text

from harness.files.terminal import Console


class Finding(NamedTuple):
    """A line of the report."""

    state: Literal["ok", "note", "bad", "open"]
    """`bad` is a problem, and `open` gives others access; both have the command that ends it."""
    what: str
    text: str


MARKS = {"ok": "ok", "note": "-", "bad": "!!", "open": "open"}


def print_findings(findings: Sequence[Finding], as_json: bool) -> None:
    """Print findings; exit code 1 if one is a problem or open."""
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        table = Table(show_header=False, box=None, padding=(0, 2))
        for finding in findings:
            # Names of files are no markup.
            table.add_row(MARKS[finding.state], finding.what, Text(finding.text))
        Console().print(table)
    if any(finding.state in ("bad", "open") for finding in findings):
        raise click.exceptions.Exit(1)
