"""The data set of latents, drawn from encoded moments.

x0 = (mean + std * noise - shift) * scale for each channel. The noise comes from the stream `posterior` at the
global sample index, so it differs between epochs (REPA train.py, `sample_posterior`: 0.18215 * (mean + std *
randn)). Encoders and metrics read the encoded images, videos or log-mel spectrograms.
"""

from __future__ import annotations

import copy
from functools import cached_property, lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.config import registry
from harness.config.data_spec import DataSpec
from harness.data.dataset import Dataset, Sample
from harness.data.disk.labels import NONE
from harness.data.disk.survey import data_path
from harness.data.log_mel import BANDS
from harness.data.open import open_dataset
from harness.data.waveforms import codec_input_shape
from harness.errors import UserError
from harness.latents.captions import STATES, TEXTS, CaptionStates, CaptionTexts
from harness.latents.codec import Affine, Codec, Renormalised, open_codec
from harness.latents.foreign import is_foreign, moments_folder
from harness.latents.linked import LinkedRecords
from harness.latents.moments import as_moments
from harness.latents.shards import MANIFEST, check, fingerprint, open_shards, read_index, read_manifest

EXPECTED = (
    "a folder written by flowrace data encode or flowrace data import, or latents in a layout that the "
    "latter reads"
)
NAME_CODEC = "set data.codec, for example --set data.codec=sd-vae:FOLDER"


class Latents:
    """Encoded images, videos or sounds: a folder written by flowrace data encode or flowrace data import.

    Latents of other code are imported into the cache when they are first opened (foreign.py). The moments are
    memory-mapped files. Moments stored as float16 are converted to float32. Captions are those that were
    encoded along, or the stored states of U-ViT's folder.
    """

    reads = (
        "root", "resolution", "channels", "frames", "classes", "posterior", "codec", "codec_weights",
        "images", "label_key",
    )  # fmt: skip
    captioned = True

    def __init__(self, spec: DataSpec) -> None:
        root = data_path(spec, EXPECTED)
        folder = moments_folder(root, spec)
        self.manifest = manifest = read_manifest(folder)
        check(folder, manifest)
        self.shape = tuple(manifest["shape"])
        self._labelled = _is_labelled(spec)
        self.classes = manifest["classes"] if self._labelled else 1
        self.fingerprint, self.modality = fingerprint(manifest), _modality(manifest)
        self.affine = Affine.from_json(manifest["codec"])
        self._spec, self._index, self._shards = spec, read_index(folder), open_shards(folder, manifest)
        self._rows, self._holds = manifest["rows"], manifest.get("holds", "std")
        parts = 1 if self._holds == "sample" else 2
        self._linked = (
            LinkedRecords(manifest["linked"], (parts, *self.shape)) if "linked" in manifest else None
        )
        self.class_names, self.label_problem = (), ""
        self.label_source = f"none: data.label_key = {NONE}"
        if self._labelled:
            self.class_names = tuple(manifest.get("class_names", ()))
            self.label_source = manifest.get("label_source", "")
            self.label_problem = manifest.get("label_problem", "")
        self.undecoded = _undecoded(manifest, spec)
        if TEXTS in manifest["files"]:
            self.captions, self.caption_source = CaptionTexts(folder), "encoded with the latents"
        if STATES in manifest["files"]:
            self.caption_states = CaptionStates(folder, manifest["states"], manifest["files"][STATES])
        _check_declared(spec, manifest)

    @staticmethod
    # Any: a namespace with the members of a `Dataset` that a plan reads.
    def outline(spec: DataSpec) -> Any:
        """Return shape, classes and modality from a spec, for a plan without data; `pictures` has those of
        the encoded samples."""
        codec = registry.load("codec", _family(spec))
        about = {"modality": codec.modalities[0], "classes": spec.classes}
        source = _planned_shape(spec, codec.modalities[0])
        shape = _outlined(codec, spec, codec_input_shape(source, codec.rate))
        return SimpleNamespace(**about, shape=shape, pictures=SimpleNamespace(**about, shape=source))

    @staticmethod
    def modality_in(spec: DataSpec) -> str:
        """Return the modality in the folder's manifest, or that of the spec's codec if there is no folder."""
        if spec.root and (Path(spec.root).expanduser() / MANIFEST).is_file():
            return _modality(read_manifest(Path(spec.root).expanduser()))
        return registry.load("codec", _family(spec)).modalities[0]

    @staticmethod
    def undecoded_in(spec: DataSpec) -> str:
        """Return why generated latents cannot be decoded; empty if they can, or if there is no folder."""
        root = Path(spec.root).expanduser()
        if spec.codec or not spec.root:
            return ""
        if (root / MANIFEST).is_file():
            return _undecoded(read_manifest(root), spec)
        return f"{spec.root} names no codec, which decodes samples; {NAME_CODEC}" if is_foreign(root) else ""

    def __len__(self) -> int:
        return self.manifest["samples"]

    def sample(self, index: int) -> Sample:
        """Return the normalised mean, float32 (c, *places)."""
        mean = torch.tensor(self._moments(index, 0)[:1])
        return Sample(self.affine.normalised(mean)[0].numpy(), self.label(index))

    def label(self, index: int) -> int:
        return int(self._index.labels[index]) if self._labelled else 0

    def key(self, index: int) -> bytes:
        """Return the key of the encoded sample, so that the split is the same."""
        return self._index.key(index)

    def draws(self, place: np.ndarray, flipped: Tensor | None, noise: Tensor) -> Tensor:
        """Draw latents float32 (B, c, *places) at data set indices (B,), of mirrored samples where `flipped`;
        `noise` has the same shape."""
        copies = np.zeros(len(place), dtype=int) if flipped is None else flipped.numpy().astype(int)
        moments = np.stack([self._moments(int(i), copy) for i, copy in zip(place, copies, strict=True)])
        mean, std = torch.from_numpy(moments).unbind(dim=1)
        return self.affine.normalised(mean if self._spec.posterior == "mean" else mean + std * noise)

    @cached_property
    def pictures(self) -> Dataset:
        """The data set that was encoded. Raises `UserError` if it is missing or has changed."""
        source = self.manifest["source"]
        if not source:
            return _Absent(self.manifest, self._spec.root)
        fields = source | ({"root": self._spec.images} if self._spec.images else {})
        try:
            return open_dataset(DataSpec(**fields))
        except UserError as error:
            raise UserError(
                f"the {_plural(self.modality)} that {self._spec.root} was encoded from: {error}. "
                "If they have moved, set data.images to their new location"
            ) from error

    def codec(self, device: torch.device) -> Codec:
        """Open the decoder: `data.codec`, or the codec that encoded the samples."""
        if self.undecoded:
            raise UserError(self.undecoded)
        codec = _codec(*_codec_of(self.manifest, self._spec), str(device))
        decode = self.manifest.get("decode")
        return codec if decode is None else Renormalised(codec, Affine.from_json(decode))

    def decoded_by(self, spec: DataSpec) -> Latents:
        """Return the same latents, which the codec of another spec decodes."""
        other = copy.copy(self)
        fields = {"codec": spec.codec, "codec_weights": spec.codec_weights}
        other._spec, other.undecoded = self._spec.model_copy(update=fields), ""
        return other

    def _moments(self, index: int, copy: int) -> np.ndarray:
        shard, row = divmod(index, self._rows)
        stored = self._shards[shard][row, copy]
        return as_moments(stored if self._linked is None else self._linked.read(stored), self._holds)


class _Absent:
    """The samples of imported latents, which are not on this machine: their shape, but no pixels."""

    fingerprint = ""

    def __init__(self, manifest: dict[str, Any], root: str) -> None:
        self.modality, self.classes = _modality(manifest), manifest["classes"]
        self.shape, self._root, self._samples = tuple(manifest["pixels"]), root, manifest["samples"]

    def __len__(self) -> int:
        return self._samples

    def sample(self, index: int) -> Sample:
        raise UserError(
            f"{self._root} was imported without its images, which encoders and metrics of real samples read; "
            "import again with --images, set data.images for latents of other code, or measure against a "
            "file with eval.reference"
        )

    def key(self, index: int) -> bytes:
        return self.sample(index).x.tobytes()


# Any: a namespace with the members of a `Dataset` that drawing samples reads.
def decodable(spec: DataSpec) -> Any:
    """Return shape, classes and codec of latents that are drawn and decoded without any data."""
    if not spec.codec:
        raise UserError(
            "latents are decoded by a codec, and this run names none: set data.codec, for example "
            "--set data.codec=sd-vae:FOLDER, or data.root to a folder written by flowrace data encode"
        )
    found = Latents.outline(spec)

    def opened(device: torch.device) -> Codec:
        codec = _codec(spec.codec, spec.codec_weights, str(device))
        if (encoded := codec.shape(found.pictures.shape)) != found.shape:
            raise UserError(
                f"data.codec = '{spec.codec}' encodes {found.pictures.shape} as {encoded}, but this run "
                f"generates latents {found.shape}; set data.codec to the codec that it was trained with"
            )
        return codec

    found.codec = opened
    return found


def check_codec(spec: DataSpec) -> None:
    """Raise `UserError` if the codec that decodes these latents is not on this machine. Nothing is loaded.

    Without the folder of latents only a codec of the spec is known.
    """
    folder = Path(spec.root).expanduser()
    if spec.root and (folder / MANIFEST).is_file():
        if _undecoded(manifest := read_manifest(folder), spec):
            return
        name, weights = _codec_of(manifest, spec)
    elif spec.codec and spec.codec_weights:
        name, weights = spec.codec, spec.codec_weights
    else:
        return
    # A codec without weights has no such check.
    check = getattr(registry.load("codec", name.partition("@")[0]), "check_weights", None)
    if check is not None:
        check(Path(weights))


def _undecoded(manifest: dict[str, Any], spec: DataSpec) -> str:
    """Return why latents cannot be decoded, empty if they can."""
    if spec.codec or manifest["codec"]["name"]:
        return ""
    return f"{spec.root} was imported without a codec, which decodes samples; {NAME_CODEC}"


def _codec_of(manifest: dict[str, Any], spec: DataSpec) -> tuple[str, str]:
    """Return the name of the decoder and the location of its weights."""
    encoder = manifest["codec"]
    name = spec.codec or f"{encoder['name']}@{encoder['sha256'][:8]}"
    return name, spec.codec_weights or encoder["weights"]


@lru_cache(maxsize=2)
def _codec(name: str, weights: str, device: str) -> Codec:
    return open_codec(name, weights, torch.device(device))


def _is_labelled(spec: DataSpec) -> bool:
    """Return whether labels are used. Raises `UserError` for a choice that latents do not have."""
    if spec.label_key not in ("", NONE):
        raise UserError(
            f"data.label_key = {spec.label_key}, but latents have one label per sample; leave it out, or set "
            f"data.label_key={NONE}"
        )
    return spec.label_key != NONE


def _family(spec: DataSpec) -> str:
    return (spec.codec or "sd-vae").partition("@")[0]


def _modality(manifest: dict[str, Any]) -> str:
    return manifest.get("modality", "image")


def _plural(modality: str) -> str:
    return {"image": "images", "video": "videos", "audio": "sounds"}[modality]


# Any: a class of codecs.
def _outlined(codec: Any, spec: DataSpec, of: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of latents under the codec's weights if the spec locates them, else the published."""
    at = getattr(codec, "outline_at", None)
    return at(Path(spec.codec_weights), of) if at and spec.codec_weights else codec.outline(of)


def _planned_shape(spec: DataSpec, modality: str) -> tuple[int, ...]:
    """Return the shape of the samples to encode, from the spec alone."""
    named = {"image": ("resolution",), "video": ("resolution", "frames"), "audio": ("frames",)}[modality]
    if missing := [name for name in (*named, "classes") if getattr(spec, name) is None]:
        *others, last = (f"data.{name}" for name in (*named, "classes"))
        raise UserError(
            f"data.root is empty: a plan without data needs {', '.join(others)} and {last} of the "
            f"{_plural(modality)}; data.{missing[0]} is not set"
        )
    frames, side = spec.frames or 0, spec.resolution or 0
    if modality == "audio":
        return BANDS, frames
    return (spec.channels or 3, *((frames,) if modality == "video" else ()), side, side)


def _check_declared(spec: DataSpec, manifest: dict[str, Any]) -> None:
    """Raise `UserError` if fields of the spec contradict the manifest."""
    modality, pixels = _modality(manifest), manifest["pixels"]
    declared = (
        ("classes", spec.classes if spec.label_key != NONE else None, manifest["classes"]),
        ("resolution", None if modality == "audio" else spec.resolution, pixels[-2]),
        ("frames", None if modality == "image" else spec.frames, pixels[1]),
    )
    for name, value, encoded in declared:
        if value not in (None, encoded):
            raise UserError(
                f"data.{name} = {value}, but {Path(spec.root)} was encoded from {_plural(modality)} with "
                f"{encoded}; "
                f"set data.{name}={encoded}"
            )
    if spec.flip and manifest["copies"] == 1:
        raise UserError(
            f"data.flip = true, but {spec.root} holds no moments of mirrored samples; encode them with --flip"
        )
