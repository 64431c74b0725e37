"""`flowrace data rae`: the decoder of a representation autoencoder, trained for a frozen encoder."""

from __future__ import annotations

import json
from pathlib import Path

import click

from harness.cli.data_source import Use, source_spec
from harness.config.options import JSON_OPTION, examples, set_option
from harness.errors import UserError

DECODER = Use("the decoder", {"held_out": "give --held-out to keep a share of the images from it"})


@click.command(
    epilog=examples(
        "flowrace data rae digits --encoder local:small --grid 4 --decoder nano --out rae",
        "flowrace data rae imagenet/train --set data.resolution=256 \\",
        "    --encoder timm:vit_base_patch14_reg4_dinov2.lvd142m --weights dinov2.safetensors --out rae",
        "flowrace data encode digits --codec rae:rae --out latents",
    )
)
@click.argument("source", metavar="SRC")
@click.option(
    "--encoder", required=True, metavar="FAMILY:MODEL", help="Frozen encoder. See: flowrace list encoders"
)
@click.option("--weights", default="", metavar="FILE", help="File of its weights, which is copied to OUT.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for the codec."
)
@click.option(
    "--grid", type=click.IntRange(1), default=16, show_default=True, help="Rows and columns of tokens."
)
@click.option("--decoder", default="B", show_default=True, metavar="SIZE", help="Size of the decoder.")
@click.option(
    "--steps", type=click.IntRange(1), default=10_000, show_default=True, help="Number of optimizer steps."
)
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Images per step.")
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    default=2e-4,
    show_default=True,
    help="Learning rate after the warm-up.",
)
@click.option(
    "--noise",
    type=click.FloatRange(0),
    default=0.8,
    show_default=True,
    help="Largest standard deviation of the noise on latents.",
)
@click.option(
    "--held-out",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.1,
    show_default=True,
    help="Share of the images that is kept from training.",
)
@click.option("--device", default="auto", show_default=True, help="Device: auto, cpu, cuda or cuda:N.")
@set_option(
    help="Set a data field of SRC, for example data.resolution=256; may be repeated.",
    metavar="data.FIELD=VALUE",
)
@JSON_OPTION
def rae(
    source: str,
    encoder: str,
    weights: str,
    out: Path,
    grid: int,
    decoder: str,
    steps: int,
    batch: int,
    learning_rate: float,
    noise: float,
    held_out: float,
    device: str,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train the decoder of a representation autoencoder.

    SRC is a data set of images, as for flowrace data encode. Its features under a frozen encoder are
    normalised for each channel and place, and a ViT learns to decode them (RAE, arXiv 2510.11690). The loss
    is L1 only. The folder is a codec: flowrace data encode SRC --codec rae:OUT. Released decoders need no
    training: give the folder of diffusers' AutoencoderRAE.
    """
    from harness.data.open import open_dataset
    from harness.encoders.base import Choice
    from harness.files.progress import progress_bar
    from harness.latents.rae_training import Recipe, save, train
    from harness.runtime.distributed import pick_device
    from harness.runtime.environment import prepare

    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; choose another --out")
    spec = source_spec(source, overrides, "image", DECODER)
    prepare(0)
    recipe = Recipe(grid, decoder, steps, batch, learning_rate, noise, held_out)
    with progress_bar(steps, "steps", hidden=as_json) as advance:
        choice = Choice(encoder, weights)
        trained = train(choice, open_dataset(spec), recipe, pick_device(device), advance)
    save(trained, out, weights)
    shape = [trained.config.channels, grid, grid]
    if as_json:
        click.echo(json.dumps({"out": str(out), "shape": shape, "psnr": trained.psnr}))
        return
    judged = "held-out" if held_out else "training"
    click.echo(f"latents {'x'.join(map(str, shape))}, {trained.psnr:.1f} dB on {judged} images")
    click.echo(out)
