"""The Inception network of FID: TensorFlow's weights of 2015 in torch-fidelity's port, with three outputs.

    features   pool_3, 2,048 numbers, for FID, KID, precision and recall
    spatial    the first 7 channels of TensorFlow's mixed_6/conv, 17x17x7 = 2,023 numbers, rows first, for
               sFID: the 1x1 branch of the third 17x17 block after norm and ReLU, `Mixed_6d.branch1x1` here
    logits     pool_3 @ W without the bias, 1,008 classes, for the inception score of ADM and torch-fidelity

The source is guided-diffusion, evaluations/evaluator.py. Pixels are resized to 299x299 exactly as in
TensorFlow 1 (bilinear, no half-pixel centres, no antialias), then mapped to (x - 128) / 128. A distance is
called FID only with the original weights.
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
"""First digits of the original weights' sha256, as given in the name of their file."""
CHANNELS = 7
BESIDE = {"spatial": 17 * 17 * CHANNELS, "logits": 1008}


def load(
    where: str | Path | None, *, device: torch.device, download: bool = False, output: str = "", **_: Any
) -> Extractor:
    """Load Inception from a weights file, else from torch hub's folder of checkpoints.

    A missing checkpoint is downloaded there if `download` is set. Other weights than the original ones are
    accepted if `where` names them; the extractor's name then includes their checksum.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    file = Path(where) if where else hub_file(URL_INCEPTION_V3)
    if download and not where and not file.exists():
        fetch(URL_INCEPTION_V3, file)
    hint = f"download {URL_INCEPTION_V3} to this path"
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


# Any: torch-fidelity declares no types for its modules.
def outputs(network: Any, images: Tensor) -> dict[str, Tensor]:
    """Return the three outputs for images uint8 (B, 3, H, W), from one pass."""
    maps: list[Tensor] = []
    tap = network.Mixed_6d.branch1x1.register_forward_hook(lambda _, __, out: maps.append(out))
    try:
        features, logits = network(images)
    finally:
        tap.remove()
    spatial = maps[0][:, :CHANNELS].permute(0, 2, 3, 1).flatten(1)
    return {"features": features, "spatial": spatial, "logits": logits}


def hub_file(url: str) -> Path:
    """Return the path at which torch hub stores the download of a URL."""
    return Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])


def fetch(url: str, file: Path) -> None:
    """Download the original weights and verify them; a partial or wrong file is not kept."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), hash_prefix=SHA256, progress=False)
    except (URLError, OSError, RuntimeError) as error:
        raise MetricError(f"cannot download {url} to {file}: {error}") from error


def _network(file: Path) -> nn.Module:
    """Return torch-fidelity's network with the weights of a file."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        # torch-fidelity would unpickle the file without restriction, so it is given a copy of the tensors.
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
