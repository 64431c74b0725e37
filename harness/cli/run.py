"""The command that trains, run, and those about the installation: verify, doctor; what commands about a run share."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from harness.assembly.resolve import is_run, load_spec
from harness.config.spec import RunSpec
from harness.errors import UserError
from harness.records.record import SPEC, Record
from harness.records.study_folder import is_whole, study_of

SETTING = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="A.B=VALUE",
    help="Override a field of the spec; may be repeated.",
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for machines.")
STEP = click.option("--step", type=int, help="Which checkpoint; the newest by default.")


@click.command(epilog="Example: flowrace run digits --set method.name=repa --set seed=1 --out runs/first")
@click.argument("source", metavar="PRESET|FILE.toml|RUN")
@SETTING
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder of runs (default: runs)."
)
@click.option("--track", metavar="URI", help="MLflow store (default: sqlite:///mlflow.db).")
@click.option("--no-track", is_flag=True, help="Do not mirror the run into MLflow.")
@click.option("--quiet", is_flag=True, help="No progress display.")
def run(
    source: str, overrides: tuple[str, ...], out: Path | None, track: str | None, no_track: bool, quiet: bool
) -> None:
    """Train one spec. The run goes into OUT/<run id>; run the same command again to continue it."""
    spec = load_spec(source, overrides)
    if is_run(Path(source)) and not overrides:
        _check_named(Path(source), spec)
    if out is None:
        out = Path(source).resolve().parent if is_run(Path(source)) else Path("runs")
    from harness.data.pin import pinned
    from harness.train.loop import train

    progress = _progress(quiet)
    try:
        path = train(pinned(spec), out, progress)
    finally:
        if hasattr(progress, "close"):
            progress.close()
    if not no_track and _main_process():
        _mirror(path, track)
    click.echo(path)


@click.command(epilog="Example: flowrace verify golden/*.safetensors --json")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@AS_JSON
def verify(files: tuple[Path, ...], as_json: bool) -> None:
    """Check golden vectors of released code: the largest absolute error of every tensor, at most 1e-5. Exit code 1 if any
    is larger."""
    from harness.flow.golden import TOLERANCE
    from harness.flow.golden import verify as check_file

    checks = [(file, check) for file in files for check in check_file(file)]
    passed = all(check.passed for _, check in checks)
    if as_json:
        rows = [{"file": str(file), **check._asdict(), "passed": check.passed} for file, check in checks]
        click.echo(json.dumps({"passed": passed, "tolerance": TOLERANCE, "checks": rows}, indent=1))
    else:
        table = Table("file", "tensor", "max abs error", "", box=None)
        for file, check in checks:
            table.add_row(
                file.name, check.tensor, f"{check.max_abs_error:.2e}", "ok" if check.passed else "FAILED"
            )
        Console().print(table)
        failed = sum(not check.passed for _, check in checks)
        click.echo(f"{len(checks)} tensors, {failed} above {TOLERANCE:g}")
    if not passed:
        raise click.exceptions.Exit(1)


@click.command(epilog="Example: flowrace doctor")
@AS_JSON
def doctor(as_json: bool) -> None:
    """Versions, device, disk and weights: what this installation can do, and what is missing."""
    from harness.cli.doctor import examine

    findings = examine()
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        table = Table(show_header=False, box=None, padding=(0, 2))
        for finding in findings:
            table.add_row({"ok": "ok", "note": "-", "bad": "!!"}[finding.state], finding.what, finding.text)
        Console().print(table)
    if any(finding.state == "bad" for finding in findings):
        raise click.exceptions.Exit(1)


def _check_named(folder: Path, spec: RunSpec) -> None:
    """Raise `UserError` where a folder is not the run that its spec describes: another would begin beside it."""
    if folder.resolve().name != spec.id:
        raise UserError(
            f"{folder} is not called as the run {spec.id} that its {SPEC} describes: rename it to continue that run, or give "
            f"{folder / SPEC} to begin it anew"
        )


def _progress(quiet: bool) -> Any:
    from harness.train.progress import Lines, Live, Quiet

    if quiet or not _main_process():
        return Quiet()
    return Live() if sys.stderr.isatty() else Lines()


def _main_process() -> bool:
    import os

    return os.environ.get("RANK", "0") == "0"


def _mirror(path: Path, uri: str | None) -> None:
    """Mirror a run into MLflow; where MLflow is not installed, that is an error only if a store was named."""
    from harness.records.mlflow_mirror import mirror

    try:
        records = [Record(path)]
        mirror(records, uri=uri, study=study_of(path.parent), complete=is_whole(path.parent, records))
    except UserError as error:
        if uri is not None:
            raise
        click.echo(f"not tracked: {error}", err=True)


def spec_of_run(path: Path, overrides: tuple[str, ...]) -> RunSpec:
    """The spec of a run directory, with overrides of what does not belong to training."""
    if not Record(path).path.is_dir():
        raise UserError(f"no such run directory: {path}")
    Record(path).spec  # noqa: B018 (says clearly when this is no run directory)
    for override in overrides:
        if not override.startswith(("eval.", "runtime.", "data.root")):
            raise UserError(
                f"--set {override}: a run that is trained can only be given other eval.*, runtime.* or data.root"
            )
    return load_spec(str(path), overrides)


def model_of_run(path: Path, spec: RunSpec, step: int | None) -> tuple[Path, Any, Any]:
    """The checkpoint file, its EMA network and the device."""
    from harness.data.open import open_dataset
    from harness.runtime.distributed import pick_device
    from harness.train.state import load_ema

    file = checkpoint_of_run(path, step)
    device = pick_device(spec.runtime.device)
    return file, load_ema(file, spec, open_dataset(spec.data), device), device


def checkpoint_of_run(path: Path, step: int | None) -> Path:
    """The checkpoint of a step, or the newest; raises `UserError` where there is none."""
    from harness.records.checkpoint import checkpoints, path_of

    found = checkpoints(path / "checkpoints")
    if not found:
        raise UserError(f"{path} has no checkpoint yet")
    file = found[-1] if step is None else path_of(path / "checkpoints", step)
    if file not in found:
        raise UserError(
            f"{path} has no checkpoint of step {step} (there are: {', '.join(f.stem for f in found)})"
        )
    return file
