"""From a source and the user's choices to an import job; everything is checked before anything is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from harness.config import registry
from harness.config.data_spec import DataSpec
from harness.data.dataset import Dataset
from harness.data.disk.kinds import image_kind, packed_kind
from harness.data.open import open_dataset
from harness.errors import UserError, unknown
from harness.latents.codec import Affine, Codec, open_codec
from harness.latents.importing import Importing, Named, Scaling, check_images, check_statistics
from harness.latents.layouts.lightningdit import (
    is_lightningdit,
    lightningdit_files,
    open_lightningdit,
    read_statistics,
)
from harness.latents.layouts.mar import is_mar, mar_files, open_mar
from harness.latents.layouts.mds import is_mds, mds_files, open_mds
from harness.latents.layouts.repa import is_repa, open_repa, repa_files
from harness.latents.layouts.source import Holds, LatentSource
from harness.latents.layouts.uvit import is_uvit, open_uvit, uvit_files
from harness.latents.layouts.webdataset import is_webdataset, open_webdataset, webdataset_files
from harness.latents.linked import linkable
from harness.latents.moments import Spread, spread_of
from metrics.value import MetricError

FACTORS = (8, 16, 32, 4, 2, 1, 64)
"""Downsampling factors of autoencoders that are tried."""
SD_SCALE = 0.18215
"""The scale of REPA's training code, for latents without a codec."""
NONE, MEASURE = "none", "measure"
MEASURED = 10_000
"""Number of latents whose statistics are measured, as in LightningDiT."""
CHUNK = 100


@dataclass(frozen=True)
class Layout:
    """A layout of latents: how it is recognised and opened."""

    name: str
    recognises: Callable[[Path], bool]
    open: Callable[..., LatentSource]
    """Takes the root and `labelled`."""
    files: Callable[[Path], Iterable[Path]]
    """Returns the files of a root that `open` and the reading of its records depend on."""
    expected: str
    sized: bool = False
    """True if `open` also takes `resolution`, because a source may hold latents of several sizes."""


LAYOUTS = (
    Layout(
        "repa", is_repa, open_repa, repa_files,
        "images/ and vae-sd/ with dataset.json, or EDM2 zip files",
    ),
    Layout(
        "lightningdit", is_lightningdit, open_lightningdit, lightningdit_files,
        "safetensors with latents and labels",
    ),
    Layout(
        "uvit", is_uvit, open_uvit, uvit_files,
        "0.npy, 1.npy, ... and states of captions 0_0.npy, ...",
    ),
    Layout(
        "webdataset", is_webdataset, open_webdataset, webdataset_files,
        "tar files with KEY.npy and KEY.cls",
    ),
    Layout("mds", is_mds, open_mds, mds_files, "MDS shards with a column latents_256", sized=True),
    Layout("mar", is_mar, open_mar, mar_files, "class folders of .npz files with moments"),
)  # fmt: skip


@dataclass(frozen=True)
class Choices:
    """The user's choices for an import; None or empty for those of the source."""

    layout: str = "auto"
    codec: str = ""
    scale: float | None = None
    shift: float | None = None
    stored_scale: float = 1.0
    stats: str = ""
    """File with mean and standard deviation of each channel, or `measure`; empty for that of the layout."""
    holds: Holds | None = None
    images: str = ""
    """Location of the images, `none` to leave them out, empty for those of the layout."""
    resolution: int | None = None
    classes: int | None = None
    labelled: bool = True
    any_scale: bool = False
    rows: int = 4096
    link: bool = False
    """Leave the records where they are, and write their positions."""


def plan_import(root: Path, choices: Choices, device: torch.device) -> Importing:
    """Return the import job of a source. Raises `UserError` for a source that cannot be used."""
    _check_numbers(choices)
    if not root.exists():
        raise UserError(f"SOURCE {root}: no such file or folder")
    try:
        layout = _layout(root, choices.layout)
        sized = {"resolution": choices.resolution} if layout.sized else {}
        source = layout.open(root, labelled=choices.labelled, **sized)
    except OSError as error:
        raise UserError(f"cannot read {error.filename or root}: {error.strerror}") from error
    except MetricError as error:
        # Of a listing, for example about a link that leads back.
        raise UserError(str(error)) from error
    if choices.link:
        linkable(source.records, root)
    codec = _codec(choices.codec, device)
    holds = _holds(source, choices, codec.opened)
    channels, *places = source.records.shape
    shape = (channels // (1 if holds == "sample" else 2), *places)
    scaling = _scaling(source, choices, codec.opened, shape, holds)
    image_spec, images, pixels = _images(source, choices, codec.opened, shape)
    classes = _classes(source, choices)
    job = Importing(
        source, holds, codec, scaling, pixels, images, image_spec, classes, choices.rows, choices.link
    )
    check_statistics(job, any_scale=choices.any_scale)
    check_images(job)
    return job


def _check_numbers(choices: Choices) -> None:
    """Raise `UserError` for a scale or shift that cannot normalise."""
    scales = (("--scale", choices.scale), ("--stored-scale", choices.stored_scale))
    for option, value in scales:
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"{option} {value:g}: expected a number above 0, for example 0.18215")
    if choices.shift is not None and not math.isfinite(choices.shift):
        raise UserError(f"--shift {choices.shift:g}: expected a finite number, for example 0.0609")


def recognised(root: Path) -> Layout | None:
    """Return the layout of latents in a file or folder, None for another one."""
    return next((layout for layout in LAYOUTS if layout.recognises(root)), None)


def _layout(root: Path, name: str) -> Layout:
    known = {layout.name: layout for layout in LAYOUTS}
    if name != "auto":
        if name not in known:
            raise unknown("layout", name, ("auto", *known))
        return known[name]
    found = recognised(root)
    if found is None and (kind := packed_kind(root)):
        raise UserError(
            f"SOURCE {root} holds images, which need no import: train on them with --set data.name={kind} "
            f"--set data.root={root}, or encode them with flowrace data encode"
        )
    if found is None:
        expected = "; ".join(f"{layout.name}: {layout.expected}" for layout in LAYOUTS)
        raise UserError(f"SOURCE {root} holds latents of no known layout; expected one of: {expected}")
    return found


def _codec(text: str, device: torch.device) -> Named:
    family, _, weights = text.partition(":")
    if family in ("", NONE):
        return Named()
    if registry.load("codec", family.partition("@")[0]).modalities[0] != "image":
        raise UserError(f"--codec {text} does not encode images; write sd-vae:FOLDER, or none")
    return Named(family.partition("@")[0], weights, open_codec(family, weights, device))


def _holds(source: LatentSource, choices: Choices, codec: Codec | None) -> Holds:
    """Return what the records hold: as chosen, else by the codec's channels, else as usual for the layout."""
    channels, *places = source.records.shape
    holds = choices.holds or source.holds
    if codec is not None and _pixels(codec, (channels, *places)) and holds != "sample":
        if choices.holds:
            raise UserError(
                f"--holds {holds}, but {source.root} has {channels} channels, which are draws of this codec"
            )
        holds = "sample"
    if holds != "sample" and channels % 2:
        raise UserError(
            f"{source.root} has {channels} channels, which is no pair of mean and {holds}; add --holds sample"
        )
    return holds


def _scaling(
    source: LatentSource, choices: Choices, codec: Codec | None, shape: tuple[int, ...], holds: Holds
) -> Scaling:
    """Return the normalisation: as chosen, of a file of statistics, of the authors' code, or of the codec."""
    if choices.stats and (choices.scale is not None or choices.shift is not None):
        raise UserError("--stats sets scale and shift; leave out --scale and --shift")
    if choices.shift is not None and choices.scale is None:
        raise UserError(f"--shift {choices.shift:g} needs the scale that it goes with; add --scale")
    if choices.scale is not None:
        affine = Affine((choices.shift or 0.0,), (choices.scale,))
        return Scaling(affine, choices.stored_scale, "as given")
    if (found := _statistics(source, choices, shape, holds)) is not None:
        mean, std, where = found
        if len(mean) != shape[0]:
            raise UserError(
                f"{source.root}: the statistics {where} have {len(mean)} channels, but the latents have "
                f"{shape[0]}; replace them, or give --scale"
            )
        return Scaling(Affine(mean, tuple(1 / value for value in std)), choices.stored_scale, where)
    if source.scale is not None:
        return Scaling(Affine(scale=(source.scale,)), choices.stored_scale, f"of {source.kind}'s code")
    if codec is not None:
        return Scaling(codec.affine, choices.stored_scale, "of the codec")
    if source.kind == "repa" and shape[0] == 4:
        return Scaling(Affine(scale=(SD_SCALE,)), choices.stored_scale, "of repa's code")
    raise UserError(
        f"{source.root}: the scale of its latents is not known; add --codec sd-vae:FOLDER, "
        "--scale and --shift, --stats FILE, or --stats measure"
    )


def _statistics(
    source: LatentSource, choices: Choices, shape: tuple[int, ...], holds: Holds
) -> tuple[tuple[float, ...], tuple[float, ...], str] | None:
    """Return mean and standard deviation of each channel, and where they are from."""
    if choices.stats == MEASURE:
        spread = _measured(source, shape, holds)
        if not (np.isfinite(spread.std_c).all() and spread.std_c.min() > 0):
            raise UserError(f"{source.root}: some channel is constant or not finite; check what was encoded")
        unscaled = 1 / choices.stored_scale
        mean, std = (tuple((values * unscaled).tolist()) for values in (spread.mean_c, spread.std_c))
        return mean, std, "measured"
    if choices.stats:
        return *read_statistics(Path(choices.stats).expanduser()), f"of {choices.stats}"
    return None if source.statistics is None else (*source.statistics, "of latents_stats.pt")


def _measured(source: LatentSource, shape: tuple[int, ...], holds: Holds) -> Spread:
    """Return the spread of MEASURED evenly spaced latents, read in bounded memory."""
    chosen = np.unique(np.linspace(0, len(source) - 1, MEASURED).round().astype(int)).tolist()
    parts = 1 if holds == "sample" else 2
    chunks, sizes = [], []
    for begin in range(0, len(chosen), CHUNK):
        some = chosen[begin : begin + CHUNK]
        records = np.concatenate([source.records.read(index, index + 1) for index in some])
        chunks.append(spread_of(records.reshape(*records.shape[:2], parts, *shape), holds))
        sizes.append(len(some))
    mean = np.average([chunk.mean_c for chunk in chunks], axis=0, weights=sizes)
    second = np.average([chunk.std_c**2 + chunk.mean_c**2 for chunk in chunks], axis=0, weights=sizes)
    return Spread(mean, np.sqrt(second - mean**2))


def _images(
    source: LatentSource, choices: Choices, codec: Codec | None, shape: tuple[int, ...]
) -> tuple[DataSpec | None, Dataset | None, tuple[int, int, int]]:
    """Return the data set of the encoded images if there is one, and (channels, height, width) in pixels."""
    pixels = None if codec is None else _pixels(codec, shape)
    if codec is not None and pixels is None:
        raise UserError(
            f"{source.root}: codec '{choices.codec.partition(':')[0]}' gives no latents of shape "
            f"{'x'.join(map(str, shape))} for images of any size; give the codec that encoded them"
        )
    side = choices.resolution or (pixels[-1] if pixels else None)
    if pixels and choices.resolution not in (None, pixels[-1]):
        raise UserError(
            f"--resolution {choices.resolution}, but this codec encodes {pixels[-1]}x{pixels[-1]} pixels as "
            f"latents {'x'.join(map(str, shape))}; leave it out"
        )
    root = Path(choices.images).expanduser() if choices.images else source.images
    if root is None or choices.images == NONE:
        if side is None:
            raise UserError(
                f"{source.root}: the size of the encoded images is not known; add --resolution, for example "
                f"--resolution {8 * shape[-1]}"
            )
        return None, None, pixels or (3, side, side)
    spec = DataSpec(name=image_kind(root), root=str(root), resolution=side)
    images = open_dataset(spec)
    if images.modality != "image":
        raise UserError(f"--images {root} holds {images.modality}; give the images that were encoded")
    return spec, images, (images.shape[0], images.shape[1], images.shape[2])


def _pixels(codec: Codec, shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """Return the shape of the images that a codec encodes as latents of a shape, None without one."""
    for factor in FACTORS:
        for channels in (3, 1):
            pixels = (channels, *(factor * side for side in shape[1:]))
            try:
                if codec.shape(pixels) == shape:
                    return channels, factor * shape[1], factor * shape[2]
            except UserError:
                continue
    return None


def _classes(source: LatentSource, choices: Choices) -> int:
    """Return the number of classes. Raises `UserError` for labels outside of the chosen number."""
    if choices.classes is None:
        return source.labels.classes
    labels = source.labels.labels
    if (largest := int(labels.max(initial=0))) >= choices.classes:
        name = source.names[int(labels.argmax())]
        raise UserError(
            f"--classes {choices.classes}, but {name} has label {largest}; expected labels from 0 to "
            f"{choices.classes - 1}"
        )
    return choices.classes
