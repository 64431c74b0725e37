"""Image networks of timm, and DINOv2 with the preprocessing of dgm-eval.

`timm:<model>` returns the pooled features before the classifier, with the image size and normalisation of the
model's training.

`dinov2-s`, `-b`, `-l` and `-g` return the normalised class token of timm's `vit_<size>_patch14_dinov2` at 224
pixels. The position embedding is resized from 37x37 to 16x16 as in the authors' code
(facebookresearch/dinov2, `interpolate_pos_encoding`): bicubic without antialias, by the factor 16.1 / 37.
timm does it differently.
"""

from __future__ import annotations

import difflib
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.extractors.base import Extractor
from metrics.extractors.resize import Pixels
from metrics.files.hashing import file_sha256
from metrics.files.hub import fill_part, weights_file
from metrics.files.weights import read_tensors
from metrics.value import MetricError

DINOV2 = {"s": "small", "b": "base", "l": "large", "g": "giant"}
SIDE, PATCH, OFFSET = 224, 14, 0.1
UNUSED = ("head.", "fc.", "classifier.", "mask_token")
"""Prefixes of tensors that a file may hold in addition: the classifier's, and those only for pretraining."""
TimmNetwork = Any
"""A network of timm; its classes declare no types for the attributes they add to nn.Module."""


def load(
    where: str | None,
    *,
    device: torch.device,
    weights: str | Path | None = None,
    sha256: str = "",
    download: bool = False,
    **_: Any,
) -> Extractor:
    """Load `timm:<model>` with weights from a file, or from the hub."""
    if not where:
        raise MetricError("extractor 'timm' needs a model, for example timm:resnet50.a1_in1k")
    name = f"timm:{where}"
    network = create(where)
    file = _file(name, where, weights, download)
    found = file_sha256(file, expected=sha256)
    fill(network, read_tensors(file), file, name)
    return _extractor(name, network, found, _pixels(network), device)


def load_dinov2(
    where: str | Path | None,
    size: str,
    *,
    device: torch.device,
    sha256: str = "",
    download: bool = False,
    **_: Any,
) -> Extractor:
    """Load `dinov2-<size>` with weights in timm's or the authors' layout, from a file or from the hub."""
    model, name = dinov2_model(size), f"dinov2-{size}"
    network = create(model, img_size=SIDE)
    file = _file(name, model, where, download)
    found, tensors = file_sha256(file, expected=sha256), read_tensors(file)
    if "pos_embed" in tensors:
        tensors["pos_embed"] = authors_positions(tensors["pos_embed"], SIDE // PATCH)
    fill(network, tensors, file, name)
    pixels = _pixels(network)._replace(size=(SIDE, SIDE))
    return _extractor(name, network, found, pixels, device)


load_s, load_b, load_l, load_g = (partial(load_dinov2, size=size) for size in DINOV2)


def dinov2_model(size: str) -> str:
    """Return timm's name of DINOv2 in a size s, b, l or g."""
    return f"vit_{DINOV2[size]}_patch14_dinov2"


def authors_positions(positions: Tensor, grid: int) -> Tensor:
    """Return a position embedding (1, 1 + M^2, d), class token first, resized to (1, 1 + grid^2, d)."""
    known = math.isqrt(positions.shape[1] - 1)
    if known == grid:
        return positions
    maps = positions[:, 1:].unflatten(1, (known, known)).permute(0, 3, 1, 2)
    factor = (grid + OFFSET) / known
    maps = F.interpolate(maps.float(), scale_factor=(factor, factor), mode="bicubic")
    return torch.cat([positions[:, :1], maps.flatten(2).transpose(1, 2)], 1)


def create(model: str, *, device: str = "cpu", **options: Any) -> TimmNetwork:
    """Return timm's network without its classifier.

    A file will replace the initial weights, so torch's generator is not advanced; on the device `meta` there
    are no weights. Raises `MetricError` for a name unknown to timm.
    """
    from timm.models import create_model, is_model, list_models

    if not is_model(model):
        near = difflib.get_close_matches(model, list_models(), n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise MetricError(f"timm has no model '{model}'.{hint} See: timm.list_models()")
    try:
        with torch.random.fork_rng(devices=[]), torch.device(device):
            return create_model(model, pretrained=False, num_classes=0, **options)
    # The architecture has no weights of this tag.
    except RuntimeError as error:
        raise MetricError(f"timm:{model}: {error}") from error


def hub_copy(model: str) -> tuple[str, str]:
    """Return the repository and the file of a model's weights on the hub; the repository may be empty."""
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(model)
    if config is None:
        return "", ""
    return config.hf_hub_id or "", config.hf_hub_filename or "model.safetensors"


def fill(
    network: TimmNetwork,
    tensors: dict[str, Tensor],
    file: Path,
    what: str,
    unused: tuple[str, ...] = UNUSED,
) -> None:
    """Load tensors in timm's layout, or in one that timm converts.

    Tensors whose names begin with one of `unused` are ignored. Raises `MetricError` for weights of another
    network.
    """
    # The modules of timm's architectures define this function only if a layout must be converted.
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    try:
        tensors = convert(tensors, network) if convert else tensors
    except (KeyError, RuntimeError) as error:
        raise MetricError(f"{file} does not hold the weights of {what}: {error}") from error
    fill_part(network, tensors, file, what, surplus=unused)


def _file(name: str, model: str, given: str | Path | None, download: bool) -> Path:
    return weights_file(f"extractor '{name}'", given, *hub_copy(model), download=download)


def _pixels(network: TimmNetwork) -> Pixels:
    config = network.pretrained_cfg
    mode = config["interpolation"] if config["interpolation"] in ("bilinear", "bicubic") else "bicubic"
    return Pixels(tuple(config["input_size"][1:]), tuple(config["mean"]), tuple(config["std"]), mode)


def _extractor(
    name: str, network: TimmNetwork, sha256: str, pixels: Pixels, device: torch.device
) -> Extractor:
    network.to(device).requires_grad_(False).eval()
    return Extractor(
        name=name,
        # Only architectures with a wider last layer have this attribute.
        dim=getattr(network, "head_hidden_size", network.num_features),
        sha256=sha256,
        preprocessing=pixels.words,
        channels=3,
        device=device,
        network=lambda images: network(pixels.prepare(images)),
    )
