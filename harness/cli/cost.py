"""`flowrace cost`: FLOPs, memory and time of a run, before it starts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click
from rich.table import Table

from harness.cli.options import AS_JSON, SETTING
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
@SETTING
@click.option(
    "--devices", type=click.IntRange(1), default=1, show_default=True, help="They share each batch."
)
@click.option(
    "--flops-per-second",
    "speed",
    type=click.FloatRange(min=0, min_open=True),
    help="What training reaches on one device, counted FLOPs a second.",
)
@click.option("--measure", is_flag=True, help="Find that out: train some steps here, on one device.")
@click.option("--measure-steps", type=click.IntRange(2), default=10, show_default=True, help="How many.")
@AS_JSON
def cost(
    source: str,
    overrides: tuple[str, ...],
    devices: int,
    speed: float | None,
    measure: bool,
    measure_steps: int,
    as_json: bool,
) -> None:
    """What a run costs before it starts: counted FLOPs, memory of one device, and, at a measured or stated speed, time.

    Memory is that of tensors, without a frozen encoder. Time is training and the network's own passes in evaluation, where they
    have training's precision. What activation checkpointing computes again is in no FLOPs: have it in the speed.
    """
    from harness.assembly.resolve import load_spec
    from harness.costs.estimate import estimate
    from harness.train.speed import measured_flops_per_second

    if measure and speed is not None:
        raise UserError("--measure and --flops-per-second both tell the speed of a device: give one of them")
    spec = load_spec(source, overrides)
    found = estimate(
        spec, devices, speed or (measured_flops_per_second(spec, measure_steps) if measure else None)
    )
    if as_json:
        click.echo(json.dumps({"method": spec.method.name, **found.as_json()}))
        return
    show(_table(found))
    if found.flops_per_second is None:
        click.echo("how long that takes: --measure trains some steps here, --flops-per-second states a speed")
    else:
        how = "measured here" if measure else "as stated"
        click.echo(f"at {found.flops_per_second:.3g} FLOP/s in training on each of {devices} ({how})")
        if not found.evaluates_alike:
            told = f"train.precision = {spec.train.precision} does not tell how long eval.precision = {spec.eval.precision} takes"
            click.echo(f"{told}: make them equal for the time of evaluations")


def _table(found: Estimate) -> Table:
    table = Table("", "FLOPs", "time", box=None, padding=(0, 2, 0, 0))
    rows = {f"one step: {phase}": flops for phase, flops in found.cost.per_step.items()}
    rows["one step"] = found.cost.step
    rows[f"training, {found.cost.steps} steps"] = found.cost.total
    for name, flops in rows.items():
        table.add_row(name, f"{flops:.3e}", _time(found.seconds(flops)))
    table.add_row("evaluations", f"{found.evaluation_flops:.3e}", _time(found.evaluation_seconds))
    table.add_row("memory of one device", "bytes", "")
    for name, size in found.memory.as_json().items():
        table.add_row(f"  {name}", f"{size / 1e9:.3f} GB", "")
    return table


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.3g} s"
    return f"{seconds / 3600:.3g} h"
