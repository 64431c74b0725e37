"""Extractors by name: what loads each, and where its weights come from."""

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
    """What loads a family of extractors."""

    load: str
    """`module` or `module:function`."""
    modality: str = "image"
    form: str = ""
    """What follows the family in a name."""
    dim: int | None = None
    """Number of features, if the name alone determines it."""
    package: str = ""
    """Optional package that it needs, as it is imported."""
    install: str = ""
    """What installs that package."""


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
    """One extractor, for a list of them."""

    name: str
    modality: str
    dim: int | None
    """None if it depends on the rest of the name."""
    install: str
    """The command that installs what it needs; empty if it is available."""


def extractors() -> list[Row]:
    """Return every extractor, without importing any."""
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
    """Return what an extractor takes: `image`, `video` or `audio`. Raises `MetricError` for an unknown
    name."""
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
    """Load the extractor of a name. Nothing is downloaded unless `download` is set.

    `inception`            torch-fidelity's Inception, the network of FID; weights from a file, or torch hub's
    copy `inception-spatial`, `inception-logits`   its features of sFID and of the inception score `dinov2-s`
    .. `-g`     DINOv2 as dgm-eval has it; weights from a file, or the hub's copy, as for the next three
    `clip-vit-l-336`       the embeddings of CMMD `timm:<model>`, `open_clip:<model>`   any image network of
    these packages `local`                a small classifier trained on `images` (n, C, H, W) uint8 and
    `labels` (n,) in 0 .. classes - 1,
                           cached in the folder `cache` if one is given
    `torchscript:<file>`   a TorchScript file, with options for example `net.ts?size=96&dim=1280` (see
    metrics/extractors/torchscript.py) `video:<extractor>`    clips (n, T, C, H, W) by any of these networks
    of images; `video:local` is trained on them `i3d`, `videomae`      networks of clips; weights from a file
    `yamnet`, `vggish`, `clap-*`   networks of recordings; weights from a file, `clap-laion-*` from a folder
    `local-audio`          the same classifier, of recordings given as `images`

    `weights` names a file if the name does not; the checksum of the weights must begin with `sha256`. Raises
    `MetricError` for an unknown name, a package that is not installed, and for missing or broken weights,
    images or labels.
    """
    import torch

    loader, rest = _loader(name), name.partition(":")[2]
    if not _is_installed(loader):
        raise MetricError(f"the package '{loader.package}' is not installed; run: {loader.install}")
    module, _, function = loader.load.partition(":")
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


def _is_installed(loader: Loader) -> bool:
    return not loader.package or find_spec(loader.package) is not None


def _loader(name: str) -> Loader:
    family, _, rest = name.partition(":")
    if family not in _LOADERS or (rest and not _LOADERS[family].form):
        near = difflib.get_close_matches(name, _LOADERS, n=1, cutoff=0.5)
        hint = f". Did you mean '{near[0]}'?" if near else ""
        raise MetricError(f"unknown extractor '{name}' (known: {', '.join(extractor_names())}){hint}")
    return _LOADERS[family]
