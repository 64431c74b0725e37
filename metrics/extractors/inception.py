"""The Inception network of FID: TensorFlow's weights of 2015 in torch-fidelity's port, and its three outputs.

    features   pool_3, 2,048 numbers: FID, KID, precision and recall
    spatial    the first 7 channels of TensorFlow's mixed_6/conv, 17x17x7 = 2,023 numbers, rows first: sFID.
    That node is
               the 1x1 branch of the third 17x17 block, behind norm and ReLU: `Mixed_6d.branch1x1` in the port
    logits     pool_3 @ W without the bias, 1,008 classes: the inception score of ADM and of torch-fidelity

(guided-diffusion evaluations/evaluator.py.) Pixels are resized to 299x299 exactly as TensorFlow 1 does
(bilinear, no half-pixel centres, no antialias), then (x - 128) / 128. Only with the original weights is a
distance called FID.
"""

from __future__ import annotations

import io
import pickle
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from metrics.extractors.base import Extractor
from metrics.files.hashing import file_sha256
from metrics.value import MetricError

SHA256 = "6726825d"
"""First digits of the sha256 of the original weights; their file carries them in its name."""
CHANNELS = 7
BESIDE = {"spatial": 17 * 17 * CHANNELS, "logits": 1008}


def load(
    where: str | Path | None, *, device: torch.device, download: bool = False, output: str = "", **_: Any
) -> Extractor:
    """Inception from a weights file, else from torch hub's folder of checkpoints, downloaded there when that
    is asked.

    Weights other than the original ones are taken when they are named, and then the extractor's name tells
    them apart.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    file = Path(where) if where else hub_file(URL_INCEPTION_V3)
    if download and not where and not file.exists():
        fetch(URL_INCEPTION_V3, file)
    hint = f"download {URL_INCEPTION_V3} and place it there"
    sha256 = file_sha256(file, expected="" if where else SHA256, missing=hint)
    extractor = Extractor(
        name="inception" if sha256.startswith(SHA256) else f"inception@{sha256[:8]}",
        dim=2048,
        sha256=sha256,
        preprocessing="299x299 bilinear as TensorFlow 1, (x - 128) / 128",
        channels=3,
        device=device,
        network=partial(outputs, _network(file).to(device)),
        beside=BESIDE,
    )
    return extractor.sibling(output) if output else extractor


load_spatial = partial(load, output="spatial")
load_logits = partial(load, output="logits")


def outputs(network: Any, images: Tensor) -> dict[str, Tensor]:
    """Compute the three outputs of images uint8 (B, 3, H, W) in one pass; `network` has no types for its
    modules."""
    maps: list[Tensor] = []
    tap = network.Mixed_6d.branch1x1.register_forward_hook(lambda _, __, out: maps.append(out))
    try:
        features, logits = network(images)
    finally:
        tap.remove()
    spatial = maps[0][:, :CHANNELS].permute(0, 2, 3, 1).flatten(1)
    return {"features": features, "spatial": spatial, "logits": logits}


def hub_file(url: str) -> Path:
    """Where torch hub keeps what it downloads."""
    return Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])


def fetch(url: str, file: Path) -> None:
    """Download the original weights: whole and verified, or not at all."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), hash_prefix=SHA256, progress=False)
    except (URLError, OSError, RuntimeError) as error:
        raise MetricError(f"cannot download {url} to {file}: {error}") from error


def _network(file: Path) -> nn.Module:
    """torch-fidelity's network. It would unpickle the file without restriction, so it gets a copy of the
    tensors alone."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        copy = io.BytesIO()
        torch.save(state, copy)
        copy.seek(0)
        wanted = ["2048", "logits_unbiased"]
        return FeatureExtractorInceptionV3("inception", wanted, feature_extractor_weights_path=copy)
    except (RuntimeError, TypeError, EOFError, pickle.UnpicklingError) as error:
        first = str(error).strip().partition("\n")[0]
        raise MetricError(
            f"{file} does not hold the weights of torch-fidelity's Inception: {first}"
        ) from error
