"""I3D, the network of FVD in StyleGAN-V's protocol: 400 logits of Kinetics-400 for 16 frames at 224x224.

The network is StyleGAN-V's TorchScript file (universome/stylegan-v, src/metrics/frechet_video_distance.py), a
port of the network on TensorFlow Hub. It resizes (bilinear) and scales to [-1, 1] itself. The protocol
compares 2,048 videos per side, with one random clip of each real video; shorter videos are dropped. A
distance is called FVD only with the original file.
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
FRAMES, LEAST, MOST = 16, 10, 1024
"""Number of frames in the protocol, and the smallest number for which the network's pooling works."""
CHUNK = 8
"""Number of clips in one pass of the network."""


def load(where: str | Path | None, *, device: torch.device, sha256: str = "", **_: Any) -> VideoExtractor:
    """Load I3D from `<file>` or `<file>?frames=128` (FVD on long clips).

    Another file than the original is accepted; the extractor's name then includes its checksum.
    """
    if not where:
        raise MetricError(f"extractor 'i3d' needs its file: download {URL} and write i3d:<path of the file>")
    path, _mark, query = str(where).partition("?")
    file, frames = Path(path), _frames(query)
    checksum = file_sha256(file, expected=sha256, missing=f"download {URL} to this path")
    script = open_script(file, device)

    def network(clips: Tensor) -> Tensor:
        # The network takes (B, C, T, H, W) in 0 .. 255.
        pixels = clips.float().transpose(1, 2)
        parts = [
            script(part, rescale=True, resize=True, return_features=True) for part in pixels.split(CHUNK)
        ]
        return torch.cat(parts)

    return VideoExtractor(
        name="i3d" if checksum == SHA256 else f"i3d@{checksum[:8]}",
        dim=_width(network, file, frames, device),
        sha256=checksum,
        preprocessing=f"{frames} frames; resized to 224x224 and scaled to [-1, 1] by the network",
        channels=3,
        device=device,
        network=network,
        frames=frames,
        least=LEAST,
    )


def _frames(query: str) -> int:
    """Return the number of frames of a query such as `frames=128`; the default is 16."""
    given = dict(parse_qsl(query, keep_blank_values=True))
    value = given.pop("frames", str(FRAMES))
    if given or not value.isdecimal() or len(value) > 9 or not LEAST <= int(value) <= MOST:
        raise MetricError(
            f"i3d option '{query[:80]}': the only option is frames=<number>, a whole number from {LEAST} to "
            f"{MOST} ({FRAMES} and 128 are usual)"
        )
    return int(value)


@torch.no_grad()
def _width(network: Any, file: Path, frames: int, device: torch.device) -> int:
    """Return the number of features, measured with one black clip."""
    blank = torch.zeros(1, frames, 3, 64, 64, dtype=torch.uint8, device=device)
    try:
        features = network(blank)
    except (RuntimeError, TypeError) as error:
        last = str(error).strip().rpartition("\n")[2]
        raise MetricError(
            f"{file} is not StyleGAN-V's I3D, which takes rescale, resize and return_features: {last}"
        ) from error
    if features.ndim != 2:
        raise MetricError(f"{file} returns {tuple(features.shape)} for one clip; expected features (1, d)")
    return features.shape[1]
