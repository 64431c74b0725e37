"""`flowrace data import`: latents that other code has stored, as a folder to train on."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.config.options import JSON_OPTION, examples

if TYPE_CHECKING:
    from harness.latents.importing import Importing

# The names in harness/latents/import_plan.py, which imports torch.
LAYOUTS = ("auto", "repa", "lightningdit", "mar", "uvit", "webdataset", "mds")
HOLDS = ("std", "logvar", "sample")
PRINTED = (
    "samples", "classes", "label_source", "shape", "pixels", "copies", "dtype", "codec", "imported",
)  # fmt: skip
"""Fields of the manifest that --json prints."""


@click.command(
    "import",
    epilog=examples(
        "flowrace data import repa-data --codec sd-vae:weights/sd-vae-ft-mse --out latents",
        "flowrace data import imagenet_train_256 --layout lightningdit --resolution 256 --out latents",
        "flowrace data import cached --codec sd-vae:kl16 --images imagenet/train --out latents",
        "flowrace run imagenet256 --set data.root=latents",
    ),
)
@click.argument("source", metavar="SOURCE", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for the latents."
)
@click.option(
    "--layout", type=click.Choice(LAYOUTS), default="auto", show_default=True, help="Layout of SOURCE."
)
@click.option(
    "--codec",
    default="none",
    show_default=True,
    metavar="NAME:PATH|none",
    help="Codec that encoded the latents and decodes samples, for example sd-vae:FOLDER.",
)
@click.option(
    "--scale", type=float, help="Scale of training: (z - shift) * scale. Default: that of the layout."
)
@click.option("--shift", type=float, help="Shift of training. Default: 0.")
@click.option(
    "--stored-scale",
    type=float,
    default=1.0,
    show_default=True,
    help="Factor that the stored latents already contain, for example 0.18215.",
)
@click.option(
    "--stats",
    default="",
    metavar="FILE|measure",
    help="File with mean and std of each channel (.pt), or measure them. Default: the layout's.",
)
@click.option(
    "--holds",
    type=click.Choice(HOLDS),
    help="Content of a record: mean and standard deviation, mean and log-variance, or one draw. "
    "Default: that of the layout.",
)
@click.option(
    "--images",
    default="",
    metavar="PATH|none",
    help="Images that were encoded, for encoders and metrics. Default: those of the layout.",
)
@click.option("--resolution", type=click.IntRange(1), help="Side of the encoded images in pixels.")
@click.option("--classes", type=click.IntRange(1), help="Number of classes, if not all occur.")
@click.option("--no-labels", is_flag=True, help="Import without labels.")
@click.option("--any-scale", is_flag=True, help="Import latents whose spread does not fit the scale.")
@click.option(
    "--link",
    is_flag=True,
    help="Leave latents of zip and safetensors files where they are, and write their positions only.",
)
@click.option(
    "--rows", type=click.IntRange(1), default=4096, show_default=True, help="Number of samples per shard."
)
@click.option(
    "--device", default="auto", show_default=True, help="Device of the codec: auto, cpu, cuda or cuda:N."
)
@JSON_OPTION
# Any: the values of click's options.
def import_(source: Path, out: Path, device: str, as_json: bool, **options: Any) -> None:
    """Import latents of other code.

    SOURCE is a folder or a file: REPA's images/ and vae-sd/ (or EDM2 zip files), LightningDiT's safetensors,
    MAR's cached .npz, U-ViT's feature folder, tar files with KEY.npy, or MDS shards with latents_256. Moments
    are copied bit for bit, with a checksum for every file. A sample of them is compared with the scale, and
    with the images and the codec if both are given.

    Rerun an interrupted command to resume it. Train on the result with data.name=latents and data.root=OUT.
    """
    from harness.files.progress import announced, progress_bar
    from harness.latents.encode import encode
    from harness.latents.import_plan import Choices, plan_import
    from harness.latents.import_report import found_lines
    from harness.latents.importing import check_codec
    from harness.runtime.distributed import join
    from harness.runtime.environment import prepare

    options["labelled"] = not options.pop("no_labels")
    prepare(0)
    with join(device) as world:
        with announced(partial(click.echo, err=True), f"reading {source}"):
            job = plan_import(source, Choices(**options), world.device)
            difference = check_codec(job, world.device)
        if world.main:
            for line in found_lines(job, difference):
                click.echo(line, err=True)
        with progress_bar(len(job.source) if world.main else 0, "samples") as advance:
            manifest = encode(job, out, world, advance)
        if world.main:
            _print_summary(manifest, job, out, as_json)


# Any: values of a manifest.
def _print_summary(manifest: dict[str, Any], job: Importing, out: Path, as_json: bool) -> None:
    from harness.latents.shards import fingerprint

    size = sum((out / name).stat().st_size for name in manifest["files"])
    linked = f" and {len(manifest['linked']['files'])} linked file(s)" if "linked" in manifest else ""
    if as_json:
        about = {name: manifest[name] for name in PRINTED}
        skipped = [{"reason": s.reason, "files": s.files, "first": s.example} for s in job.source.skipped]
        row = {
            "out": str(out),
            "fingerprint": fingerprint(manifest),
            "bytes": size,
            "holds": job.holds,
            "linked": job.link,
        }
        click.echo(json.dumps(row | about | {"skipped": skipped}))
        return
    click.echo(
        f"{manifest['samples']} samples, latents {'x'.join(map(str, manifest['shape']))}, "
        f"{size / 1e6:.1f} MB{linked}, {fingerprint(manifest)}"
    )
    click.echo(out)
