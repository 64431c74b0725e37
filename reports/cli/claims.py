"""The command `flowrace claims`: published numbers, their sources and their inconsistencies."""

from __future__ import annotations

import csv
import difflib
import json
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.config.options import JSON_OPTION
from harness.files.csv_cells import inert
from reports.cli.options import CLAIMS_FOLDER

if TYPE_CHECKING:
    from reports.literature.check import Finding
    from reports.literature.entries import PublishedNumber

FILTERS = {
    "paper": "Key of a paper: sf, repa, sra, as, sit, haste, reg, user, ...",
    "method": "flowrace's name (self_flow) or the printed one (Self-Flow).",
    "metric": "FID, IS, FVD, ...",
    "model": "SiT-XL/2, SiT-B/2, FLUX.2-625M, ...",
    "status": "table, text, abstract, figure_estimate, secondary, press or user_report.",
    "dataset": "ImageNet-256, ...",
}
COLUMNS = (
    "value",
    "metric",
    "method",
    "model",
    "data set",
    "steps",
    "protocol",
    "printed in",
    "status",
    "id",
)


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    for name, text in reversed(FILTERS.items()):
        command = click.option(f"--{name}", help=text)(command)
    return command


@click.group(
    invoke_without_command=True,
    epilog="Example: flowrace claims --method self_flow --metric FID --model SiT-XL/2",
)
@_filters
@CLAIMS_FOLDER
@JSON_OPTION
@click.option("--csv", "as_csv", is_flag=True, help="Print a CSV with every field.")
@click.pass_context
def claims(
    context: click.Context, folder: Path | None, as_json: bool, as_csv: bool, **wanted: str | None
) -> None:
    """List the published numbers that come with flowrace, with source and protocol, or check them against
    each other."""
    context.obj = folder
    if context.invoked_subcommand:
        if as_json or as_csv or any(wanted.values()):
            raise click.UsageError(
                f"options of the list cannot be combined with '{context.invoked_subcommand}'"
            )
        return
    if as_json and as_csv:
        raise click.UsageError("--json and --csv are mutually exclusive")
    from reports.literature.database import load_literature, select

    numbers = select(load_literature(folder).numbers, **wanted)
    if as_json:
        click.echo(json.dumps({"numbers": [number.model_dump() for number in numbers]}, indent=1))
    elif as_csv:
        _print_csv(numbers)
    else:
        _print_table(numbers)


@claims.command(epilog="Example: flowrace claims show sf.claim.7M-400k-143k")
@click.argument("name", metavar="ID")
@CLAIMS_FOLDER
@JSON_OPTION
@click.pass_obj
def show(above: Path | None, name: str, folder: Path | None, as_json: bool) -> None:
    """Show one number: every field, and the findings about it."""
    from harness.errors import UserError
    from reports.literature.check import check_literature
    from reports.literature.compare import shown
    from reports.literature.database import load_literature

    literature = load_literature(folder or above)
    if name not in literature.by_id:
        near = [known for known in literature.by_id if known.startswith(name)]
        near = near or difflib.get_close_matches(name, literature.by_id, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise UserError(f"no published number has the id '{name}'.{hint} See: flowrace claims")
    number = literature.by_id[name]
    about = [finding for finding in check_literature(literature) if name in finding.ids]
    if as_json:
        click.echo(json.dumps(number.model_dump() | {"findings": [asdict(one) for one in about]}, indent=1))
        return
    for field, value in (number.model_dump() | {"value": shown(number)}).items():
        if value not in (None, ""):
            click.echo(f"{field:<9} {value}")
    for finding in about:
        _print_finding(finding)


@claims.command(epilog="Example: flowrace claims check --rule arithmetic --rule across-benchmarks")
@click.option("--rule", "rules", multiple=True, help="Show only findings of this rule; may be repeated.")
@CLAIMS_FOLDER
@JSON_OPTION
@click.pass_obj
def check(above: Path | None, rules: tuple[str, ...], folder: Path | None, as_json: bool) -> None:
    """Find inconsistencies between published numbers.

    Recomputes stated ratios. Finds ratios carried over from another benchmark, comparisons across protocols,
    baselines with several values, margins of single trainings within the known spread, and text that
    contradicts figures.

    Findings are not errors: the exit code is 0 in any case.
    """
    from harness.errors import unknown
    from reports.literature.check import RULES, check_literature
    from reports.literature.database import load_literature

    for rule in rules:
        if rule not in RULES:
            raise unknown("rule", rule, RULES, see="flowrace claims check --help")
    literature = load_literature(folder or above)
    found = [finding for finding in check_literature(literature) if not rules or finding.rule in rules]
    if as_json:
        click.echo(json.dumps({"findings": [asdict(finding) for finding in found]}, indent=1))
        return
    tally = Counter(finding.severity for finding in found)
    words = ", ".join(_counted(n, kind) for kind, n in tally.items())
    click.echo(f"{len(literature.numbers)} published numbers; {words or 'nothing found'}")
    for finding in found:
        _print_finding(finding)


def _counted(n: int, severity: str) -> str:
    if severity == "holds":
        return f"{n} stated ratio{'s hold' if n > 1 else ' holds'}"
    return f"{n} {severity}{'s' if n > 1 else ''}"


def _print_finding(finding: Finding) -> None:
    """Print a heading, the sentence and the sources; wrapped in a terminal, one line each in a pipe."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    click.echo(f"\n{finding.severity} ({finding.rule})")
    for text in (finding.text, *(f"- {source}" for source in finding.sources)):
        click.echo(textwrap.fill(text, width, initial_indent="  ", subsequent_indent="    "))


def _print_csv(numbers: Sequence[PublishedNumber]) -> None:
    from reports.literature.entries import PublishedNumber

    writer = csv.DictWriter(sys.stdout, fieldnames=list(PublishedNumber.model_fields), lineterminator="\n")
    writer.writeheader()
    for number in numbers:
        writer.writerow({name: inert(value) for name, value in number.model_dump().items()})


def _print_table(numbers: Sequence[PublishedNumber]) -> None:
    """Print one row per number, or a short paragraph each if the terminal is too narrow."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from harness.files.terminal import Console

    table = Table(*COLUMNS, box=box.SIMPLE_HEAD, pad_edge=False)
    rows = [_cells(number) for number in numbers]
    for row in rows:
        table.add_row(*(Text(text) for text in row))
    console = Console()
    natural = Console(width=10_000).measure(table).maximum
    if console.is_terminal and natural > console.width:
        for value, metric, *parts, name in rows:
            click.echo(name)
            line = f"{metric} {value}: {', '.join(part for part in parts if part)}"
            click.echo(textwrap.fill(line, console.width, initial_indent="  ", subsequent_indent="  "))
    else:
        Console(width=natural).print(table)
    click.echo(f"{len(numbers)} published number{'' if len(numbers) == 1 else 's'}")


def _cells(number: PublishedNumber) -> tuple[str, ...]:
    from reports.literature.compare import count, place, protocol_text, shown

    plain = (number.metric, number.method, number.model, number.dataset, count(number.steps))
    return (shown(number), *plain, protocol_text(number), place(number), number.status, number.id)
