"""Import of latents that other code has stored, into a folder of moments; nothing is encoded again.

The records are copied bit for bit. What they hold (mean and standard deviation, mean and log-variance, or a
draw) is in the manifest, and they are converted when they are read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.config.data_spec import DataSpec
from harness.data.dataset import Capabilities, Dataset, label_of
from harness.data.open import from_pixels, images
from harness.errors import UserError
from harness.latents.captions import STATES, staged_digests, states_file
from harness.latents.codec import Affine, Codec
from harness.latents.encode import shards_of
from harness.latents.layouts.source import Holds, LatentSource
from harness.latents.linked import Linkable, describe_files, linkable
from harness.latents.moments import SAMPLED, Spread, as_moments, check_holds, check_spread, spread_of
from harness.latents.shards import FORMAT

NUMBERED = "uvit"
"""Layout whose latents are in the order of the numbers of their images."""
NUMBER = re.compile(r"[0-9]{1,18}$")
"""The number at the end of the name of an image."""
TOLERANCE = 0.25
"""Largest relative difference between the mean of an encoded image and the stored one. Another image or
another autoencoder differs by about 1, another interpolation of the resize by about 0.1."""


@dataclass(frozen=True)
class Named:
    """A codec by its name and the location of its weights; without a name, decoding needs `data.codec`."""

    family: str = ""
    weights: str = ""
    opened: Codec | None = None

    def row(self) -> dict[str, Any]:
        """Return the fields of a manifest."""
        sha256 = self.opened.sha256 if self.opened else ""
        weights = str(Path(self.weights).resolve()) if self.weights else ""
        return {"name": self.family, "sha256": sha256, "weights": weights}


@dataclass(frozen=True)
class Scaling:
    """The normalisation of stored latents."""

    affine: Affine
    """(z - shift) * scale of the codec's latents z, as training uses them."""
    stored: float = 1.0
    """The factor that the stored latents already contain."""
    source: str = ""
    """Source of the normalisation, for messages."""

    def of_stored(self) -> Affine:
        """Return the normalisation of latents as they are stored."""
        if self.stored == 1:
            return self.affine
        shift, scale = self.affine
        return Affine(tuple(s * self.stored for s in shift), tuple(s / self.stored for s in scale))


@dataclass(frozen=True)
class Importing:
    """An import job: a source, its meaning, and the layout of the shards."""

    source: LatentSource
    holds: Holds
    codec: Named
    scaling: Scaling
    pixels: tuple[int, int, int]
    images: Dataset | None
    image_spec: DataSpec | None
    classes: int
    rows: int
    link: bool = False
    """Leave the records where they are, and write their positions."""

    @property
    def parts(self) -> int:
        return 1 if self.holds == "sample" else 2

    @property
    def shape(self) -> tuple[int, ...]:
        """(c, *places) of a latent."""
        channels, *places = self.source.records.shape
        return (channels // self.parts, *places)

    @property
    def record(self) -> tuple[int, ...]:
        return (self.source.records.copies, 2) if self.link else self._latents

    @property
    def dtype(self) -> np.dtype:
        return np.dtype("<i8") if self.link else self.source.records.dtype

    @property
    def _latents(self) -> tuple[int, ...]:
        """(copies, parts, c, *places) of a sample."""
        return (self.source.records.copies, self.parts, *self.shape)

    @property
    def about(self) -> dict[str, Any]:
        """The manifest without its files."""
        source, decode = self.source, self.scaling.affine.to_json()
        stored = self.scaling.of_stored().to_json()
        return {
            "format": FORMAT,
            "codec": self.codec.row() | stored,
            **({"decode": decode} if self._decodes_differently else {}),
            **({"holds": self.holds} if self.holds != "std" else {}),
            **({"link": True} if self.link else {}),
            **({"states": self._states} if self.source.captions else {}),
            "source": self._image_fields(),
            "imported": {
                "layout": source.kind,
                "identity": source.identity,
                "root": str(source.root.resolve()),
            },
            "samples": len(source),
            "classes": self.classes,
            "class_names": list(source.labels.names),
            "label_source": source.label_source,
            **({"label_problem": problem} if (problem := source.labels.problem) else {}),
            "pixels": list(self.pixels),
            "shape": list(self.shape),
            "copies": source.records.copies,
            "dtype": self.source.records.dtype.name,
            "rows": self.rows,
        }

    @property
    def _decodes_differently(self) -> bool:
        """Return whether the codec may normalise in another way than training.

        Without a codec, one that is named later is not known to have this normalisation.
        """
        opened = self.codec.opened
        return self.scaling.stored != 1 or opened is None or opened.affine != self.scaling.affine

    @property
    def images_at(self) -> str:
        return self.image_spec.root if self.image_spec else ""

    def _image_fields(self) -> dict[str, Any]:
        """Return the fields of the images' data set; none without images."""
        if self.images is None or self.image_spec is None:
            return {}
        spec = self.image_spec
        given = {name: value for name in ("name", "resolution") if (value := getattr(spec, name)) is not None}
        root = str(Path(spec.root).expanduser().resolve())
        return given | {"fingerprint": self.images.fingerprint, "root": root}

    def shards(self) -> list[range]:
        return shards_of(len(self.source), self.rows)

    def moments(self, part: range, device: torch.device) -> Iterator[np.ndarray]:
        for start in range(part.start, part.stop, SAMPLED):
            stop = min(start + SAMPLED, part.stop)
            records = self.read(start, stop)
            yield self._linkable.positions(start, stop) if self.link else records

    def staged(self) -> dict[str, Callable[[], bytes]]:
        """Return the parts of the digests of captions' states, for which all of them are read."""
        captions = self.source.captions
        return {} if captions is None else staged_digests(captions)

    def further(self) -> dict[str, Callable[[Path], bytes]]:
        """Return the digests of captions' states, from their parts."""
        captions = self.source.captions
        return {} if captions is None else {STATES: partial(states_file, captions)}

    def closing(self) -> dict[str, Any]:
        """Return the files that linked records are in."""
        return {"linked": describe_files(self._linkable, self.source.root)} if self.link else {}

    @property
    def _states(self) -> dict[str, Any]:
        features = self.source.captions
        assert features is not None
        return {"root": str(features.folder.resolve()), "shape": list(features.empty().shape)}

    @property
    def _linkable(self) -> Linkable:
        return linkable(self.source.records, self.source.root)

    def labels(self) -> np.ndarray:
        return self.source.labels.labels

    def keys(self) -> list[bytes]:
        """Return the keys of the images, so that the split is theirs; without images, names."""
        if self.images is not None:
            return [self.images.key(index) for index in range(len(self.source))]
        return [name.encode(errors="surrogateescape") for name in self.source.names]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return records (n, *record), checked: finite, and no standard deviation below 0."""
        records = self._finite(start, stop)
        if self.holds == "std":
            negative = (records[:, :, 1] < 0).reshape(len(records), -1).any(1)
            for row in np.flatnonzero(negative)[:1]:
                raise UserError(f"{self.name(start + row)} has negative standard deviations; replace it")
        return records

    def _finite(self, start: int, stop: int) -> np.ndarray:
        records = self.source.records.read(start, stop)
        records = records.reshape(len(records), *self._latents)
        finite = np.isfinite(records).reshape(len(records), -1).all(1)
        for row in np.flatnonzero(~finite)[:1]:
            raise UserError(
                f"{self.name(start + row)} has values that are not finite; encode it again or remove it"
            )
        return records

    def name(self, index: int) -> str:
        """Return the name of a sample in messages."""
        return f"{self.source.root}: {self.source.names[index]}"

    @cached_property
    def sampled(self) -> np.ndarray:
        """SAMPLED records, evenly spaced."""
        chosen = np.unique(np.linspace(0, len(self.source) - 1, SAMPLED).round().astype(int)).tolist()
        return np.concatenate([self._finite(i, i + 1) for i in chosen])

    @cached_property
    def spread(self) -> Spread:
        """The spread of stored latents."""
        return spread_of(self.sampled, self.holds)


def check_statistics(job: Importing, *, any_scale: bool) -> None:
    """Raise `UserError` if sampled records contradict what they are declared to hold, or the scale."""
    check_holds(job.sampled, job.holds, str(job.source.root))
    if not any_scale:
        check_spread(job.spread, job.scaling.of_stored(), str(job.source.root), job.scaling.stored)


def check_images(job: Importing) -> None:
    """Raise `UserError` if the images are not those of the latents: their number and their labels."""
    if job.images is None or job.image_spec is None:
        return
    source, found, where = job.source, job.images, job.image_spec.root
    if len(found) != len(source):
        raise UserError(
            f"{where} has {len(found)} images, but {source.root} has latents of {len(source)}; give the "
            "images that were encoded with --images, or --images none"
        )
    if source.kind == NUMBERED:
        _check_order(found, where)
    if found.classes == 1 or source.labels.classes == 1:
        return
    labels = source.labels.labels
    for index in range(len(source)):
        if (label := label_of(found, index)) != labels[index]:
            raise UserError(
                f"{where}: image {index} has label {label}, but {source.names[index]} has {labels[index]}; "
                "give the images in the order of the latents, or --images none"
            )


def _check_order(images: Dataset, where: str) -> None:
    """Raise `UserError` for images whose numbers do not increase, because latents are in numeric order.

    Numbers are compared between neighbours whose names differ only in the number at the end.
    """
    if (name := Capabilities(images).sample_name) is None:
        return
    before, last = "", -1
    for index in range(len(images)):
        found = NUMBER.search(str(Path(name(index)).with_suffix("")))
        prefix, number = (found.string[: found.start()], int(found[0])) if found else ("", -1)
        if found and prefix == before and number <= last:
            raise UserError(
                f"{where}: image {index} in the order of names is {name(index)}, after {name(index - 1)}, so "
                "images do not belong to the latents of their places; pad the numbers with zeros, or give "
                "--images none"
            )
        before, last = prefix, number


def check_codec(job: Importing, device: torch.device) -> float | None:
    """Return the largest relative difference of the first and last image, encoded again, to the stored means.

    Returns None without a codec or images. Raises `UserError` for another codec or other images.
    """
    codec = job.codec.opened
    if codec is None or job.images is None:
        return None
    worst = 0.0
    for index in dict.fromkeys((0, len(job.source) - 1)):
        pixels = from_pixels(images(job.images, np.array([index]))[0]).to(device)
        encoded = codec.encode(pixels).mean[0].double().cpu().numpy() * job.scaling.stored
        stored = as_moments(job.read(index, index + 1)[0, 0], job.holds)[0].astype(np.float64)
        spread = float(np.linalg.norm(encoded - encoded.mean((1, 2), keepdims=True)))
        difference = float(np.linalg.norm(encoded - stored)) / max(spread, 1e-12)
        if not difference <= TOLERANCE:
            raise UserError(
                f"{job.name(index)} is not what codec '{job.codec.family}' makes of image {index} of "
                f"{job.images_at}: they differ by {100 * difference:.0f} % of its spread; give the codec "
                "and the images that were used, or --images none"
            )
        worst = max(worst, difference)
    return worst
