"""`flowrace cost`: the estimated FLOPs, memory and time of a run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click
from rich.table import Table

from harness.config.options import JSON_OPTION, set_option
from harness.errors import UserError
from harness.files.terminal import show

if TYPE_CHECKING:
    from harness.costs.estimate import Estimate

EPILOG = """\b
Example:
  flowrace cost digits --measure
  flowrace cost imagenet256 --set method.name=self_flow --devices 8 --flops-per-second 4e14
"""


@click.command(epilog=EPILOG)
@click.argument("source", metavar="PRESET|FILE.toml|RUN")
@set_option()
@click.option(
    "--devices",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Number of devices that share each batch.",
)
@click.option(
    "--flops-per-second",
    "speed",
    type=click.FloatRange(min=0, min_open=True),
    help="Training speed of one device, in counted FLOPs per second.",
)
@click.option(
    "--measure", is_flag=True, help="Measure the speed by training a few steps on one local device."
)
@click.option(
    "--measure-steps",
    type=click.IntRange(2),
    default=10,
    show_default=True,
    help="Number of steps to measure.",
)
@JSON_OPTION
def cost(
    source: str,
    overrides: tuple[str, ...],
    devices: int,
    speed: float | None,
    measure: bool,
    measure_steps: int,
    as_json: bool,
) -> None:
    """Estimate the FLOPs of a run, the memory of one device and, at a measured or given speed, the time.

    Memory is that of tensors, without frozen encoders. Time covers training, and the network's passes in
    evaluation if eval.precision equals train.precision. FLOPs do not include recomputation by activation
    checkpointing, so a given speed must account for it.
    """
    from harness.assembly.resolve import load_spec
    from harness.costs.estimate import estimate
    from harness.train.speed import measured_flops_per_second

    if measure and speed is not None:
        raise UserError("--measure and --flops-per-second are mutually exclusive; give one of them")
    spec = load_spec(source, overrides)
    found = estimate(
        spec, devices, speed or (measured_flops_per_second(spec, measure_steps) if measure else None)
    )
    if as_json:
        click.echo(json.dumps({"method": spec.method.name, **found.as_json()}))
        return
    show(_table(found))
    if found.flops_per_second is None:
        click.echo("for the time, measure the speed with --measure or give it with --flops-per-second")
    else:
        how = "measured" if measure else "given"
        click.echo(f"at {found.flops_per_second:.3g} FLOP/s in training on each of {devices} ({how})")
        if not found.evaluates_alike:
            click.echo(
                f"evaluation time cannot be estimated because eval.precision ({spec.eval.precision}) "
                f"differs from train.precision ({spec.train.precision})"
            )


def _table(found: Estimate) -> Table:
    table = Table("", "FLOPs", "time", box=None, padding=(0, 2, 0, 0))
    rows = {f"one step: {phase}": flops for phase, flops in found.cost.per_step.items()}
    rows["one step"] = found.cost.step
    rows[f"training, {found.cost.steps} steps"] = found.cost.total
    for name, flops in rows.items():
        table.add_row(name, f"{flops:.3e}", _time(found.seconds(flops)))
    table.add_row("evaluations", f"{found.evaluation_flops:.3e}", _time(found.evaluation_seconds))
    if found.reading_flops:
        time = _time(found.seconds(found.reading_flops))
        table.add_row("log of gradients, not training", f"{found.reading_flops:.3e}", time)
    if found.captions is not None:
        number = "unknown number of" if found.captions.captions is None else found.captions.captions
        flops = "-" if found.captions.flops is None else f"{found.captions.flops:.3e}"
        table.add_row(f"text encoder, {number} captions once", flops, "-")
    table.add_row("memory of one device", "bytes", "")
    for name, size in found.memory.as_json().items():
        table.add_row(f"  {name}", f"{size / 1e9:.3f} GB", "")
    table.add_row("disk, at the end of the run", f"{found.disk_bytes / 1e9:.3f} GB", "")
    return table


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.3g} s"
    return f"{seconds / 3600:.3g} h"
