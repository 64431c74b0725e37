"""`flowrace verify`: a check of this installation against golden vectors of released code."""

from __future__ import annotations

import json
import math
from pathlib import Path

import click
from rich.table import Table

from harness.config.options import JSON_OPTION
from harness.files.terminal import Console


@click.command(epilog="Example: flowrace verify golden/*.safetensors --json")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--device", default="cpu", show_default=True, help="Device: auto, cpu, cuda or cuda:N.")
@JSON_OPTION
def verify(files: tuple[Path, ...], device: str, as_json: bool) -> None:
    """Check this installation against golden vectors of released code.

    Prints the largest absolute error of every tensor, which may be at most 1e-5. Exit code 1 if one is
    larger.
    """
    from harness.flow.golden import TOLERANCE
    from harness.flow.golden import verify as check_file
    from harness.runtime.distributed import pick_device
    from harness.runtime.environment import prepare

    place = pick_device(device)
    if place.type == "cuda":
        # As in training: without TF32.
        prepare(0)
    checks = [(file, check) for file in files for check in check_file(file, place)]
    passed = all(check.passed for _, check in checks)
    if as_json:
        # JSON has no NaN and no infinity: null is an error that is no number.
        rows = [
            {
                "file": str(file),
                "tensor": check.tensor,
                "max_abs_error": check.max_abs_error if math.isfinite(check.max_abs_error) else None,
                "passed": check.passed,
            }
            for file, check in checks
        ]
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
