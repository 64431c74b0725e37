"""The Inception network of FID: TensorFlow's weights of 2015 in torch-fidelity's port, 2,048 pooled features.

Pixels are resized to 299x299 exactly as TensorFlow 1 does (bilinear, no half-pixel centres, no antialias), then
(x - 128) / 128. Only with the original weights is a distance over these features called FID.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metrics.extractor import Extractor
from metrics.files import file_sha256
from metrics.value import MetricError

SHA256 = "6726825d"
"""First digits of the sha256 of the original weights; their file carries them in its name."""


def load(weights: str | Path | None, *, device: torch.device, **_: Any) -> Extractor:
    """Inception from a weights file, else from torch hub's folder of checkpoints.

    Weights other than the original ones are taken when they are named, and then the extractor's name tells them apart.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    file = Path(weights) if weights else hub_file(URL_INCEPTION_V3)
    hint = f"download {URL_INCEPTION_V3} and place it there"
    sha256 = file_sha256(file, expected="" if weights else SHA256, missing=hint)
    network = _network(file).to(device)
    return Extractor(
        name="inception" if sha256.startswith(SHA256) else f"inception@{sha256[:8]}",
        dim=2048,
        sha256=sha256,
        preprocessing="299x299 bilinear as TensorFlow 1, (x - 128) / 128",
        channels=3,
        device=device,
        network=lambda images: network(images)[0],
    )


def hub_file(url: str) -> Path:
    """Where torch hub keeps what it downloads."""
    return Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])


def _network(file: Path) -> nn.Module:
    """torch-fidelity's network. It would unpickle the file without restriction, so it gets a copy of the tensors alone."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        copy = io.BytesIO()
        torch.save(state, copy)
        copy.seek(0)
        return FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=copy)
    except (RuntimeError, TypeError, EOFError, pickle.UnpicklingError) as error:
        first = str(error).strip().partition("\n")[0]
        raise MetricError(
            f"{file} does not hold the weights of torch-fidelity's Inception: {first}"
        ) from error
