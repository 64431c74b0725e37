"""The command `flowrace report`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(epilog="Example: flowrace report runs/digits -o report.html --target 12")
@click.argument("directories", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="The page; two CSV files are written beside it.",
)
@click.option(
    "--metric", help="As in the record, fd:local say. Default: the study's, else the first evaluated."
)
@click.option(
    "--target", type=float, help="The value to reach. Default: the study's, else what every run reaches."
)
@click.option(
    "--baseline", help="The arm to compare with: a method or a label. Default: the study's, else flow."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for machines.")
def report(
    directories: tuple[Path, ...],
    output: Path,
    metric: str | None,
    target: float | None,
    baseline: str | None,
    as_json: bool,
) -> None:
    """Report on run directories, or folders of them: who reached the target first, and how sure that is.

    One self-contained HTML file that opens offline, and its numbers as CSV. Needs no torch.
    """
    from reports.pages.page import write_report
    from reports.pages.tables import to_json

    done = write_report(list(directories), output, metric=metric, target=target, baseline=baseline)
    if as_json:
        click.echo(to_json(done.race, dict(done.verdict), list(done.caveats), str(done.html)))
        return
    click.echo(done.headline)
    for note in done.caveats:
        click.echo(f"- {note}")
    click.echo(done.html)
