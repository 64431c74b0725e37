"""I3D as StyleGAN-V's protocol has it: the network of FVD, 400 logits of Kinetics-400 for 16 frames at
224x224.

The network is the TorchScript file that StyleGAN-V gives (universome/stylegan-v,
src/metrics/frechet_video_distance.py), a port of the one on TensorFlow Hub; it resizes (bilinear) and scales
to [-1, 1] by itself. The protocol takes 2,048 videos on each side and one random clip of each real video;
those that are too short are left out. Only with the original file is a distance over these features called
FVD.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import torch
from torch import Tensor

from metrics.extractors.torchscript import open_script
from metrics.extractors.video.base import VideoExtractor
from metrics.files.hashing import file_sha256
from metrics.value import MetricError

SHA256 = "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2"
URL = "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1"
FRAMES, LEAST = 16, 10
"""Of the protocol; the network's pooling breaks below LEAST frames."""
CHUNK = 8
"""Clips that pass the network at once."""


def load(where: str | Path | None, *, device: torch.device, sha256: str = "", **_: Any) -> VideoExtractor:
    """I3D of `<file>` or `<file>?frames=128` (FVD's long form).

    A file other than the original is taken, and the extractor's name tells it apart.
    """
    if not where:
        raise MetricError(f"extractor 'i3d' needs its file: download {URL} and name it with weights")
    path, _mark, query = str(where).partition("?")
    file, frames = Path(path), _frames(query)
    found = file_sha256(file, expected=sha256, missing=f"download {URL} and place it there")
    script = open_script(file, device)

    def network(clips: Tensor) -> Tensor:
        pixels = clips.float().transpose(1, 2)  # (B, C, T, H, W), 0 .. 255
        parts = [
            script(part, rescale=True, resize=True, return_features=True) for part in pixels.split(CHUNK)
        ]
        return torch.cat(parts)

    return VideoExtractor(
        name="i3d" if found == SHA256 else f"i3d@{found[:8]}",
        dim=_width(network, file, frames, device),
        sha256=found,
        preprocessing=f"{frames} frames; resized to 224x224 and scaled to [-1, 1] by the network",
        channels=3,
        device=device,
        network=network,
        frames=frames,
        least=LEAST,
    )


def _frames(query: str) -> int:
    """`frames=16` as a number, 16 where nothing is said."""
    given = dict(parse_qsl(query, keep_blank_values=True))
    value = given.pop("frames", str(FRAMES))
    if given or not value.isdecimal() or int(value) < LEAST:
        raise MetricError(
            f"i3d option '{query}': the one option is frames=, a whole number from {LEAST} ({FRAMES} and 128 are usual)"
        )
    return int(value)


@torch.no_grad()
def _width(network: Any, file: Path, frames: int, device: torch.device) -> int:
    """The number of features, found with one black clip."""
    blank = torch.zeros(1, frames, 3, 64, 64, dtype=torch.uint8, device=device)
    try:
        found = network(blank)
    except (RuntimeError, TypeError) as error:
        last = str(error).strip().rpartition("\n")[2]
        raise MetricError(
            f"{file} is not StyleGAN-V's I3D, which takes rescale, resize and return_features: {last}"
        ) from error
    if found.ndim != 2:
        raise MetricError(f"{file} gives {tuple(found.shape)} for one clip; expected features (1, d)")
    return found.shape[1]
