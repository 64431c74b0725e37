"""`flowrace import`: released weights as a run directory."""

from __future__ import annotations

from pathlib import Path

import click

from harness.config.options import examples, layout_option, set_option


@click.command(
    "import",
    epilog=examples(
        "flowrace import SiT-XL-2-256.pt --layout sit --out runs/released",
        "flowrace sample runs/released/0123456789ab -n 64 --set data.codec=sd-vae:sd-vae-ft-ema",
        "flowrace extend runs/released/0123456789ab --steps 410000 --set method.name=self_flow"
        " --set data.root=latents",
    ),
)
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path))
@layout_option("Names and convention of the weights; auto refuses names that fit several layouts.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs"),
    show_default=True,
    help="Folder of runs.",
)
@click.option(
    "--step", type=click.IntRange(0), help="Step of the weights. Default: that in the file, else 0."
)
@click.option("--part", help="Part of the file to read, for example model. Default: the moving average.")
@click.option("--heads", type=click.IntRange(1), help="Attention heads, for a width that is not published.")
@click.option("--patch", type=click.IntRange(1), help="Patch of layout self-flow. Default: 2, as released.")
@set_option(help="Set a field of the run's spec, for example data.name=digits; may be repeated.")
def import_(
    source: Path,
    layout: str,
    out: Path,
    step: int | None,
    part: str | None,
    heads: int | None,
    patch: int | None,
    overrides: tuple[str, ...],
) -> None:
    """Make a run directory of released weights: a .pt or .safetensors file, or a folder of accelerate or
    diffusers.

    Nothing is unpickled but tensors. The weights are converted to flowrace's convention and compared with the
    released forward pass. The last line is the run directory, which sample, eval, probe, cost, extend, export
    and report take.
    """
    from harness.exchange.import_run import convert, write_run
    from harness.exchange.reading import read_source
    from harness.exchange.weights_run import found_lines

    imported = convert(read_source(source, part), layout, heads, patch)
    for line in found_lines(imported, step):
        click.echo(line)
    click.echo(write_run(imported, out, step, overrides))
