"""The one door to extractors: a name, and where its weights come from."""

from __future__ import annotations

import difflib
import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from metrics.value import MetricError

if TYPE_CHECKING:
    from metrics.extractors.base import Extractor

__all__ = ["Row", "extractor_modality", "extractor_names", "extractors", "load_extractor"]


class Room(NamedTuple):
    load: str
    """`module` or `module:function`."""
    modality: str = "image"
    form: str = ""
    """How a name goes on after the family."""
    dim: int | None = None
    """Number of features, where the name alone says it."""
    package: str = ""
    """Optional package that it needs, as it is imported."""
    install: str = ""
    """What installs that package."""


_AUDIO, _VIDEO = "pip install 'flowrace[audio]'", "pip install 'flowrace[video]'"
_CLIP, _TIMM = "pip install open_clip_torch", "pip install timm"
_INCEPTION = {"package": "torch_fidelity", "install": "pip install torch-fidelity"}
_CLAP = {"modality": "audio", "form": "[:<folder>]", "dim": 512, "package": "transformers", "install": _AUDIO}
_ROOMS = {
    "clap-2023": Room("metrics.extractors.audio.clap:load_2023", "audio", "[:<file>]", 1024),
    "clap-laion-audio": Room("metrics.extractors.audio.clap:load_laion_audio", **_CLAP),
    "clap-laion-music": Room("metrics.extractors.audio.clap:load_laion_music", **_CLAP),
    "clip-vit-l-336": Room(
        "metrics.extractors.open_clip:load_cmmd", dim=768, package="open_clip", install=_CLIP
    ),
    "dinov2-s": Room("metrics.extractors.timm:load_s", dim=384, package="timm", install=_TIMM),
    "dinov2-b": Room("metrics.extractors.timm:load_b", dim=768, package="timm", install=_TIMM),
    "dinov2-l": Room("metrics.extractors.timm:load_l", dim=1024, package="timm", install=_TIMM),
    "dinov2-g": Room("metrics.extractors.timm:load_g", dim=1536, package="timm", install=_TIMM),
    "i3d": Room("metrics.extractors.video.i3d", "video", "[:<file>]", 400),
    "inception": Room("metrics.extractors.inception", dim=2048, **_INCEPTION),
    "inception-logits": Room("metrics.extractors.inception:load_logits", dim=1008, **_INCEPTION),
    "inception-spatial": Room("metrics.extractors.inception:load_spatial", dim=2023, **_INCEPTION),
    "local": Room("metrics.extractors.local", dim=64),
    "local-audio": Room("metrics.extractors.audio.local", "audio", "[:<options>]", 64),
    "open_clip": Room(
        "metrics.extractors.open_clip", form=":<model>[.<weights>]", package="open_clip", install=_CLIP
    ),
    "timm": Room("metrics.extractors.timm", form=":<model>", package="timm", install=_TIMM),
    "torchscript": Room("metrics.extractors.torchscript", form=":<file>"),
    "vggish": Room("metrics.extractors.audio.vggish", "audio", "[:<file>]", 128),
    "video": Room("metrics.extractors.video.frames", "video", ":<image extractor>"),
    "videomae": Room("metrics.extractors.video.videomae", "video", "[:<file>]", 1408, "transformers", _VIDEO),
    "yamnet": Room("metrics.extractors.audio.yamnet", "audio", "[:<file>]", 1024),
}


class Row(NamedTuple):
    """One extractor, for a list of them."""

    name: str
    modality: str
    dim: int | None
    """None where it depends on how the name goes on."""
    install: str
    """The command without which it is not available; empty where it is."""


def extractors() -> list[Row]:
    """Every extractor there is. Imports none of them."""
    return [
        Row(family + room.form, room.modality, room.dim, "" if _is_there(room) else room.install)
        for family, room in _ROOMS.items()
    ]


def extractor_names() -> list[str]:
    """The names that `load_extractor` takes, with a placeholder where a name goes on."""
    return [family + room.form for family, room in _ROOMS.items()]


def extractor_modality(name: str) -> str:
    """What the extractor of that name takes: `image`, `video` or `audio`. Raises `MetricError` for an unknown name."""
    return _room(name).modality


def load_extractor(
    name: str,
    *,
    weights: str | Path | None = None,
    images: Any = None,
    labels: Any = None,
    classes: int | None = None,
    cache: Path | None = None,
    sha256: str = "",
    download: bool = False,
    device: str = "cpu",
) -> Extractor:
    """The extractor of a name. Nothing is downloaded unless `download` is set.

    `inception`            torch-fidelity's Inception, the network of FID; weights from a file, or torch hub's copy
    `inception-spatial`, `inception-logits`   its features of sFID and of the inception score
    `dinov2-s` .. `-g`     DINOv2 as dgm-eval has it; weights from a file, or the hub's copy, as for the next three
    `clip-vit-l-336`       the embeddings of CMMD
    `timm:<model>`, `open_clip:<model>`   any image network of these packages
    `local`                a small classifier trained here on `images` (n, C, H, W) uint8 and `labels` (n,) in 0 .. classes - 1,
                           kept in the folder `cache` where one is given
    `torchscript:<file>`   a TorchScript file, with options as in `net.ts?size=96&dim=1280` (see metrics/extractors/torchscript.py)
    `video:<extractor>`    clips (n, T, C, H, W) by any of these networks of images; `video:local` is trained on them
    `i3d`, `videomae`      networks of clips; weights from a file
    `yamnet`, `vggish`, `clap-*`   networks of recordings; weights from a file, `clap-laion-*` from a folder
    `local-audio`          the classifier trained here, on recordings given as `images`

    `weights` names a file where the name does not; the checksum of the weights must begin with `sha256`. Raises
    `MetricError` for an unknown name, a package that is not installed, and for weights, images or labels that are missing
    or broken.
    """
    import torch

    room, rest = _room(name), name.partition(":")[2]
    if not _is_there(room):
        raise MetricError(f"the package '{room.package}' is not installed; run: {room.install}")
    module, _, function = room.load.partition(":")
    given = {"images": images, "labels": labels, "classes": classes, "cache": cache}
    given |= {"sha256": sha256, "download": download}
    if rest:
        given["weights"] = weights  # of the network that the name goes on to
    load = getattr(importlib.import_module(module), function or "load")
    extractor = load(rest or weights, device=torch.device(device), **given)
    if not extractor.sha256.startswith(sha256.lower()):
        raise MetricError(
            f"extractor '{name}': the sha256 of its weights is {extractor.sha256}, expected {sha256}"
        )
    return extractor


def _is_there(room: Room) -> bool:
    return not room.package or find_spec(room.package) is not None


def _room(name: str) -> Room:
    family, _, rest = name.partition(":")
    if family not in _ROOMS or (rest and not _ROOMS[family].form):
        near = difflib.get_close_matches(name, _ROOMS, n=1, cutoff=0.5)
        hint = f". Did you mean '{near[0]}'?" if near else ""
        raise MetricError(f"unknown extractor '{name}' (known: {', '.join(extractor_names())}){hint}")
    return _ROOMS[family]
