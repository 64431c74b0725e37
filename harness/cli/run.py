"""`flowrace run`: the training of one spec."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.assembly.resolve import is_run, load_spec
from harness.assembly.run_folder import check_named
from harness.config.options import set_option, track_options
from harness.config.spec import RunSpec
from harness.errors import UserError
from harness.records.early_end import PATIENCE, EndRule, parse_end_rule
from harness.records.record import Record
from harness.records.study_folder import StudyFolder

if TYPE_CHECKING:
    from harness.train.progress import Quiet


EPILOG = """\b
Example:
  flowrace run digits --set method.name=repa --set seed=1 --out runs/first
  flowrace run digits --set 'eval.guidance=[1.0, 2.0]'
  torchrun --nproc-per-node 8 -m harness.cli.main run imagenet256 --set data.root=latents
"""


@click.command(epilog=EPILOG)
@click.argument("source", metavar="PRESET|FILE.toml|RUN")
@set_option()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of runs. Default: that of RUN, else runs.",
)
@track_options
@click.option(
    "--evaluate",
    "evaluations",
    multiple=True,
    metavar="FILE.toml",
    help="Also evaluate the kept weights by section [eval] of this spec; may be repeated.",
)
@click.option(
    "--end-when",
    multiple=True,
    metavar="METRIC<=VALUE",
    help="End the run early, once its evaluations have crossed this target for good; may be repeated. The "
    "target of a success is its shortfall: '1-success@TASK<=0.2'.",
)
@click.option(
    "--patience",
    type=click.IntRange(1),
    default=PATIENCE,
    show_default=True,
    help="Evaluations in a row at or below the target of --end-when.",
)
@click.option(
    "--margin",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="Share by which these evaluations are below the target of --end-when.",
)
@click.option("--quiet", is_flag=True, help="Show no progress.")
def run(
    source: str,
    overrides: tuple[str, ...],
    out: Path | None,
    track: str | None,
    no_track: bool,
    evaluations: tuple[str, ...],
    end_when: tuple[str, ...],
    patience: int,
    margin: float,
    quiet: bool,
) -> None:
    """Train one spec into OUT/<run id>. Rerun the same command to resume it.

    The id depends on what can change the weights. With more train.steps the run is continued, and with other
    eval.* its kept weights are measured.
    """
    spec = load_spec(source, overrides)
    if is_run(Path(source)) and not overrides:
        check_named(Path(source), spec)
    if out is None:
        out = Path(source).resolve().parent if is_run(Path(source)) else Path("runs")
    rule = parse_end_rule(end_when, patience, margin)
    train_run(spec, out, track, no_track, quiet=quiet, evaluations=evaluations, rule=rule)


def train_run(
    spec: RunSpec,
    out: Path,
    track: str | None,
    no_track: bool,
    *,
    quiet: bool,
    evaluations: tuple[str, ...] = (),
    rule: EndRule | None = None,
) -> None:
    """Train a spec in its folder in `out`, mirror it into MLflow, and print the folder."""
    from harness.data.pin import pinned
    from harness.train.loop import train

    progress = _progress(quiet)
    try:
        also = [load_spec(file).eval for file in evaluations]
        path = train(pinned(spec), out, progress, also, rule)
    finally:
        progress.close()
    if not no_track and _is_rank_0():
        _mirror(path, track)
    click.echo(path)


def _progress(quiet: bool) -> Quiet:
    from harness.train.progress import Lines, Live, Quiet

    if quiet or not _is_rank_0():
        return Quiet()
    return Live() if sys.stderr.isatty() else Lines()


def _is_rank_0() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _mirror(path: Path, uri: str | None) -> None:
    """Mirror a run into MLflow; that MLflow is not installed is an error only if a store was named."""
    from harness.records.mlflow_mirror import mirror

    try:
        records, folder = [Record(path)], StudyFolder(path.parent)
        mirror(records, uri=uri, study=folder.name, complete=folder.is_complete(records))
    except UserError as error:
        if uri is not None:
            raise
        click.echo(f"not tracked: {error}", err=True)
