"""From a source and the user's choices to an import job; everything is checked before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from harness.config import registry
from harness.config.spec import DataSpec
from harness.data.dataset import Dataset
from harness.data.disk.kinds import image_kind
from harness.data.open import open_dataset
from harness.errors import UserError, unknown
from harness.latents.codec import Affine, Codec, open_codec
from harness.latents.importing import Importing, Named, Scaling, check_images, check_statistics
from harness.latents.layouts.repa import is_repa, open_repa
from harness.latents.layouts.source import Holds, LatentSource

FACTORS = (8, 16, 32, 4, 2, 1, 64)
"""Downsampling factors of autoencoders that are tried."""
SD_SCALE = 0.18215
"""The scale of REPA's training code, for latents without a codec."""
NONE = "none"


@dataclass(frozen=True)
class Layout:
    """A layout of latents: how it is recognised and opened."""

    name: str
    recognises: Callable[[Path], bool]
    open: Callable[..., LatentSource]
    """Takes the root and `labelled`."""
    expected: str


LAYOUTS = (Layout("repa", is_repa, open_repa, "images/ and vae-sd/ with dataset.json, or EDM2 zip files"),)


@dataclass(frozen=True)
class Choices:
    """The user's choices for an import; None or empty for what the source says."""

    layout: str = "auto"
    codec: str = ""
    scale: float | None = None
    shift: float | None = None
    stored_scale: float = 1.0
    holds: Holds | None = None
    images: str = ""
    """Location of the images, `none` to leave them out, empty for those of the layout."""
    resolution: int | None = None
    classes: int | None = None
    labelled: bool = True
    any_scale: bool = False
    rows: int = 4096


def plan_import(root: Path, choices: Choices, device: torch.device) -> Importing:
    """Return the import job of a source. Raises `UserError` for a source that cannot be used."""
    if not root.exists():
        raise UserError(f"SOURCE {root}: no such file or folder")
    layout = _layout(root, choices.layout)
    source = layout.open(root, labelled=choices.labelled)
    codec = _codec(choices.codec, device)
    holds = _holds(source, choices, codec.opened)
    channels, *places = source.records.shape
    shape = (channels // (1 if holds == "sample" else 2), *places)
    scaling = _scaling(source, choices, codec.opened, shape[0])
    image_spec, images, pixels = _images(source, choices, codec.opened, shape)
    job = Importing(
        source, holds, codec, scaling, pixels, images, image_spec, _classes(source, choices), choices.rows
    )
    check_statistics(job, any_scale=choices.any_scale)
    check_images(job)
    return job


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
    """Return what the records hold: as chosen, else by the codec's channels, else as the layout says."""
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


def _scaling(source: LatentSource, choices: Choices, codec: Codec | None, channels: int) -> Scaling:
    """Return the normalisation: as chosen, of a file of statistics, of the authors' code, or of the codec."""
    if choices.scale is not None or choices.shift is not None:
        affine = Affine((choices.shift or 0.0,), (1.0 if choices.scale is None else choices.scale,))
        return Scaling(affine, choices.stored_scale, "as given")
    if source.statistics is not None:
        mean, std = source.statistics
        if len(mean) != channels:
            raise UserError(
                f"{source.root}: its statistics have {len(mean)} channels, but the latents have {channels}; "
                "replace them, or give --scale"
            )
        affine = Affine(mean, tuple(1 / value for value in std))
        return Scaling(affine, choices.stored_scale, "of latents_stats.pt")
    if source.scale is not None:
        return Scaling(Affine(scale=(source.scale,)), choices.stored_scale, f"of {source.kind}'s code")
    if codec is not None:
        return Scaling(codec.affine, choices.stored_scale, "of the codec")
    if source.kind == "repa" and channels == 4:
        return Scaling(Affine(scale=(SD_SCALE,)), choices.stored_scale, "of repa's code")
    raise UserError(
        f"{source.root}: the scale of its latents is not known; add --codec sd-vae:FOLDER, or "
        "--scale and --shift"
    )


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
