"""The registry of extractors: names, loaders, feature sizes and optional packages."""

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


class Loader(NamedTuple):
    """The loader of a family of extractors."""

    load: str
    """Loading function: `module:function`, or `module` for its function `load`."""
    modality: str = "image"
    form: str = ""
    """Pattern of the part of a name that follows the family; may be empty."""
    dim: int | None = None
    """Number of features, if the family alone determines it."""
    package: str = ""
    """Import name of the optional package it needs; empty if it needs none."""
    install: str = ""
    """Command that installs that package."""


_AUDIO, _VIDEO = "pip install 'flowrace[audio]'", "pip install 'flowrace[video]'"
_CLIP, _TIMM = "pip install open_clip_torch", "pip install timm"
_INCEPTION = {"package": "torch_fidelity", "install": "pip install torch-fidelity"}
_CLAP = {"modality": "audio", "form": "[:<folder>]", "dim": 512, "package": "transformers", "install": _AUDIO}
_LOADERS = {
    "clap-2023": Loader("metrics.extractors.audio.clap:load_2023", "audio", "[:<file>]", 1024),
    "clap-laion-audio": Loader("metrics.extractors.audio.clap:load_laion_audio", **_CLAP),
    "clap-laion-music": Loader("metrics.extractors.audio.clap:load_laion_music", **_CLAP),
    "clip-vit-l-336": Loader(
        "metrics.extractors.open_clip:load_cmmd", dim=768, package="open_clip", install=_CLIP
    ),
    "dinov2-s": Loader("metrics.extractors.timm:load_s", dim=384, package="timm", install=_TIMM),
    "dinov2-b": Loader("metrics.extractors.timm:load_b", dim=768, package="timm", install=_TIMM),
    "dinov2-l": Loader("metrics.extractors.timm:load_l", dim=1024, package="timm", install=_TIMM),
    "dinov2-g": Loader("metrics.extractors.timm:load_g", dim=1536, package="timm", install=_TIMM),
    "i3d": Loader("metrics.extractors.video.i3d", "video", "[:<file>]", 400),
    "inception": Loader("metrics.extractors.inception", dim=2048, **_INCEPTION),
    "inception-logits": Loader("metrics.extractors.inception:load_logits", dim=1008, **_INCEPTION),
    "inception-spatial": Loader("metrics.extractors.inception:load_spatial", dim=2023, **_INCEPTION),
    "local": Loader("metrics.extractors.local", dim=64),
    "local-audio": Loader("metrics.extractors.audio.local", "audio", "[:<options>]", 64),
    "open_clip": Loader(
        "metrics.extractors.open_clip", form=":<model>[.<weights>]", package="open_clip", install=_CLIP
    ),
    "timm": Loader("metrics.extractors.timm", form=":<model>", package="timm", install=_TIMM),
    "torchscript": Loader("metrics.extractors.torchscript", form=":<file>"),
    "vggish": Loader("metrics.extractors.audio.vggish", "audio", "[:<file>]", 128),
    "video": Loader("metrics.extractors.video.frames", "video", ":<image extractor>"),
    "videomae": Loader(
        "metrics.extractors.video.videomae", "video", "[:<file>]", 1408, "transformers", _VIDEO
    ),
    "yamnet": Loader("metrics.extractors.audio.yamnet", "audio", "[:<file>]", 1024),
}


class Row(NamedTuple):
    """A row of the list of extractors."""

    name: str
    modality: str
    dim: int | None
    """Number of features; None if it depends on the rest of the name."""
    install: str
    """Command that installs a missing package; empty if the extractor is available."""


def extractors() -> list[Row]:
    """Return a row for every extractor, without importing any."""
    return [
        Row(
            family + loader.form, loader.modality, loader.dim, "" if _is_installed(loader) else loader.install
        )
        for family, loader in _LOADERS.items()
    ]


def extractor_names() -> list[str]:
    """Return the names that `load_extractor` takes, with placeholders."""
    return [family + loader.form for family, loader in _LOADERS.items()]


def extractor_modality(name: str) -> str:
    """Return the modality of an extractor's input: `image`, `video` or `audio`.

    Raises `MetricError` for an unknown name.
    """
    return _loader(name).modality


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
    """Load an extractor by its name. Nothing is downloaded unless `download` is set.

    Images:

        inception                   torch-fidelity's Inception, the network of FID; a file or torch hub's copy
        inception-spatial           its features for sFID
        inception-logits            its logits for the inception score
        dinov2-s, -b, -l, -g        DINOv2 with the preprocessing of dgm-eval; a file or the hub's copy
        clip-vit-l-336              the embeddings of CMMD; a file or the hub's copy
        timm:<model>                any image network of timm; a file or the hub's copy
        open_clip:<model>           any image tower of open_clip; a file or the hub's copy
        local                       a small classifier, trained on `images` and `labels`
        torchscript:<file>          a TorchScript file; options in metrics/extractors/torchscript.py

    Videos:

        video:<image extractor>     any of the above, over the frames of clips (n, T, C, H, W)
        i3d, videomae               networks over clips; a file

    Audio:

        yamnet, vggish, clap-2023   networks over windows of recordings; a file
        clap-laion-audio, -music    the same; a folder
        local-audio                 the classifier `local`, trained on recordings given as `images`

    `images` (n, C, H, W) uint8, `labels` (n,) in 0 .. classes - 1 and `classes` are the training data of the
    local classifiers, which are cached in the folder `cache` if given. Instead of images and labels, `images`
    may be `metrics.extractors.local.TrainingImages`. `weights` is the file or folder if the name has none.
    The checksum of the weights must begin with `sha256`. Raises `MetricError` for an unknown name, a package
    that is not installed, and missing or invalid weights, images or labels.
    """
    import torch

    check_installed(name)
    loader, rest = _loader(name), name.partition(":")[2]
    module, _, function = loader.load.partition(":")
    given = {"images": images, "labels": labels, "classes": classes, "cache": cache}
    given |= {"sha256": sha256, "download": download}
    # If the name has a second part, that is the file or the network, and `weights` belongs to the network.
    if rest:
        given["weights"] = weights
    load = getattr(importlib.import_module(module), function or "load")
    extractor = load(rest or weights, device=torch.device(device), **given)
    if not extractor.sha256.startswith(sha256.lower()):
        raise MetricError(
            f"extractor '{name}': the sha256 of its weights is {extractor.sha256}, expected {sha256}"
        )
    return extractor


def check_installed(name: str) -> None:
    """Raise `MetricError` for an unknown extractor, and for one whose optional package is not installed."""
    loader = _loader(name)
    if not _is_installed(loader):
        raise MetricError(f"the package '{loader.package}' is not installed; run: {loader.install}")


def _is_installed(loader: Loader) -> bool:
    return not loader.package or find_spec(loader.package) is not None


def _loader(name: str) -> Loader:
    family, _, rest = name.partition(":")
    if family not in _LOADERS or (rest and not _LOADERS[family].form):
        near = difflib.get_close_matches(name, _LOADERS, n=1, cutoff=0.5)
        hint = f". Did you mean '{near[0]}'?" if near else ""
        raise MetricError(f"unknown extractor '{name}' (known: {', '.join(extractor_names())}){hint}")
    return _LOADERS[family]
