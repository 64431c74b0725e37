"""`flowrace data`: latents encoded or imported before training, demonstrations recorded, and real samples
measured before runs start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from harness.cli.data_demos import demos
from harness.cli.data_import import import_
from harness.cli.data_rae import rae
from harness.cli.data_source import Use, source_spec
from harness.config.options import JSON_OPTION, set_option

ENCODE_EPILOG = """\b
Example:
  flowrace data encode digits --codec identity --out latents
  flowrace data encode imagenet/train --set data.resolution=256 \\
    --codec sd-vae:weights/sd-vae-ft-mse --out latents
  flowrace data encode clips --set data.frames=17 --set data.resolution=192 \\
    --codec wan-vae:weights/wan2.2/vae --out latents
  torchrun --nproc-per-node 8 -m harness.cli.main data encode ...
Under torchrun, the processes split the shards between them.
"""

ENCODING = Use("encoding", {"flip": "give --flip to encode mirrored pictures too"})

PREPARE_EPILOG = """\b
Example:
  flowrace data prepare cifar10 --set data.root=cifar10/train.parquet --set runtime.threads=2
"""


@click.group(epilog="Example: flowrace data encode digits --codec identity --out latents")
def data() -> None:
    """Prepare data for training."""


data.add_command(import_)
data.add_command(demos)
data.add_command(rae)


@data.command(epilog=ENCODE_EPILOG)
@click.argument("source", metavar="SRC")
@click.option(
    "--codec",
    required=True,
    metavar="NAME[:PATH]",
    help="Codec and the local folder of its weights, for example sd-vae:FOLDER; identity has no weights. "
    "See: flowrace list codecs",
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for the latents."
)
@click.option(
    "--flip", is_flag=True, help="Encode mirrored pictures too, for data.flip = true. Doubles the size."
)
@click.option("--half", is_flag=True, help="Store moments in float16, which halves the size.")
@click.option(
    "--rows", type=click.IntRange(1), default=4096, show_default=True, help="Number of samples per shard."
)
@click.option(
    "--batch", type=click.IntRange(1), default=32, show_default=True, help="Number of samples per pass."
)
@click.option(
    "--device", default="auto", show_default=True, help="Device of the codec: auto, cpu, cuda or cuda:N."
)
@set_option(
    help="Set a data field of SRC, for example data.resolution=256; may be repeated.",
    metavar="data.FIELD=VALUE",
)
@JSON_OPTION
def encode(
    source: str,
    codec: str,
    out: Path,
    flip: bool,
    half: bool,
    rows: int,
    batch: int,
    device: str,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Encode images, videos or sounds into latents.

    SRC is a folder of class folders, a .parquet file or a folder of them, an .npz or .zip file, tar files,
    MDS shards, a folder of save_to_disk, or the name of a data set (flowrace list datasets). Files in a
    folder are read as the modality that the codec encodes. Mean and variance of each latent are stored, with
    a checksum for every file.

    Rerun an interrupted command to resume it. Train on the result with data.name=latents and data.root=OUT.
    """
    from harness.config import registry
    from harness.data.found import check_labels, found_in
    from harness.data.open import open_dataset
    from harness.latents.codec import open_codec
    from harness.latents.encode import Encoding, check_encodes, encode
    from harness.runtime.distributed import join
    from harness.runtime.environment import prepare

    family, _, weights = codec.partition(":")
    spec = source_spec(source, overrides, registry.load("codec", family).modalities[0], ENCODING)
    prepare(0)
    with join(device) as world:
        dataset = open_dataset(spec)
        check_labels(dataset)
        if world.main and not as_json:
            click.echo(found_in(dataset).line(), err=True)
        check_encodes(family, dataset, flip)
        opened = open_codec(family, weights, world.device)
        job = Encoding(spec, dataset, opened, family, weights, flip, half, rows, batch)
        # Raises before anything is written.
        job.latent_shape()
        with _bar(len(job.dataset) if world.main else 0) as advance:
            manifest = encode(job, out, world, advance)
        if world.main:
            _print_summary(manifest, out, as_json)


@data.command(epilog=PREPARE_EPILOG)
@click.argument("sources", metavar="PRESET|FILE.toml|RUN...", nargs=-1, required=True)
@set_option()
def prepare(sources: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    """Measure the real samples of runs before they start.

    Networks trained on the data, features of real samples and noise floors are computed and kept in the
    cache. Runs on the same kind of device with the same threads then start at once. Without this command, the
    first run computes them while the others wait.
    """
    from harness.assembly.resolve import load_spec
    from harness.train.prepare import prepare_real_samples

    for source in sources:
        prepare_real_samples(load_spec(source, overrides), click.echo)


def _bar(total: int) -> Any:
    from harness.files.progress import progress_bar

    return progress_bar(total, "samples")


def _print_summary(manifest: dict[str, Any], out: Path, as_json: bool) -> None:
    from harness.latents.shards import fingerprint

    size = sum((out / name).stat().st_size for name in manifest["files"])
    about = {
        name: manifest[name] for name in ("samples", "classes", "shape", "pixels", "copies", "dtype", "codec")
    }
    if as_json:
        click.echo(json.dumps({"out": str(out), "fingerprint": fingerprint(manifest), "bytes": size} | about))
        return
    shape = "x".join(map(str, manifest["shape"]))
    click.echo(
        f"{manifest['samples']} samples, latents {shape}, {size / 1e6:.1f} MB, {fingerprint(manifest)}"
    )
    click.echo(out)
