"""The commands `flowrace report` and `flowrace report diff`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness.config.options import JSON_OPTION, examples, warn_of
from reports.cli.collector import collecting_rarely
from reports.cli.options import AXES, log_options, parse_labels, race_options
from reports.cli.report_diff import diff


class OrDiff(click.Command):
    """A command on folders that runs `flowrace report diff` if its first word is `diff`.

    A folder of this name is given as `./diff`.
    """

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args[:1] == ["diff"]:
            return diff.make_context(f"{info_name} diff", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)


@click.command(
    cls=OrDiff,
    epilog=examples(
        "flowrace report runs/digits -o report.html --target baseline@400 --table times.tex",
        then="See also: flowrace report diff --help",
    ),
)
@race_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="HTML file to write; three CSV files are written next to it.",
)
@click.option(
    "--claim",
    "claims",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Claim (TOML) to audit on these runs; its verdict comes first on the page. May be repeated.",
)
@click.option(
    "--table",
    "tables",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Also write times and speed-ups as a table for a paper: out.tex (booktabs), out.md or out.csv. "
    "May be repeated.",
)
@click.option(
    "--axes",
    "axis_words",
    metavar="AXIS,...",
    default="",
    help=f"Axes of the tables, separated by commas: {', '.join(AXES)}. Default: all.",
)
@log_options
@JSON_OPTION
@collecting_rarely()
def report(
    directories: tuple[str, ...],
    output: Path,
    as_json: bool,
    label_words: tuple[str, ...],
    tables: tuple[Path, ...],
    axis_words: str,
    **asked: Any,
) -> None:
    """Report who reached the target first, and with what certainty.

    Runs are run directories or folders of them, or else a CSV of curves, logs of other tools or an MLflow
    store, for which the page leaves out what they do not record. Writes one self-contained HTML file that
    opens offline, and its numbers as CSV. Needs no torch.
    """
    from reports.audit.success_words import claimed_success
    from reports.audit.words import because, claimed
    from reports.cli.audit_card import audit_json
    from reports.cli.success_card import success_json
    from reports.pages.conditions import ranking_changes
    from reports.pages.page import write_report
    from reports.pages.report_json import to_json
    from reports.pages.table_files import check_table, write_table

    axes = _axes(axis_words)
    for file in tables:
        check_table(file)
    written = write_report(list(directories), output, labels=parse_labels(label_words), **asked)
    found = written.report
    warn_of(found.race.misfits)
    for file in tables:
        write_table(found, file, axes)
    if as_json:
        claims = [*map(audit_json, found.claims), *map(success_json, found.success_claims)]
        click.echo(to_json(found, claims, str(written.html)))
        return
    for audit in found.claims:
        click.echo(f"{audit.verdict.upper()}: {claimed(audit)} ({because(audit)})")
    for one in found.success_claims:
        click.echo(f"{one.verdict.upper()}: {claimed_success(one)} ({one.reason})")
    click.echo(found.headline)
    for other in found.at_other_targets:
        click.echo(other.headline)
    if changes := ranking_changes(found):
        click.echo(changes)
    for note in found.caveats:
        click.echo(f"- {note}")
    for file in tables:
        click.echo(file)
    click.echo(written.html)


def _axes(words: str) -> list[str]:
    from harness.errors import unknown

    axes = [word.strip() for word in words.split(",") if word.strip()]
    for axis in axes:
        if axis not in AXES:
            raise unknown("axis", axis, AXES)
    return axes
