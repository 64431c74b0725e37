"""VGGish, the network of FAD: 128 raw features of log-mel patches of 0.96 s.

"Raw" means the last linear layer's output, without the rectifier, PCA and 8-bit quantisation of AudioSet's
released embeddings. The weights are in torchvggish's layout (harritaylor/torchvggish, vggish-10086976.pth),
which holds TensorFlow's weights with permuted axes. By default there is no padding and no dither, as in
fadtk.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metrics.extractors.audio.base import AudioExtractor, split_options
from metrics.extractors.audio.log_mel import BANDS, FRAME, HOP, PATCH, RATE, WINDOW, log_mel
from metrics.files.hashing import file_sha256
from metrics.files.weights import fill, read_tensors
from metrics.value import MetricError

SHA256 = "10086976"
"""First digits of the sha256 of torchvggish's file, as given in its name."""
DIM, OFFSET, WIDE = 128, 1e-2, 4096
PLAN = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool")
"""Widths of the convolutions, with the positions of the pooling layers."""
URL = "https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth"


class VGGish(nn.Module):
    """The network from log-mel patches (B, 1, 96, 64) to features (B, 128), with torchvggish's parameter
    names.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 1
        for step in PLAN:
            if isinstance(step, int):
                layers += [nn.Conv2d(width, step, 3, padding=1), nn.ReLU()]
                width = step
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(width * 6 * 4, WIDE), nn.ReLU(), nn.Linear(WIDE, WIDE), nn.ReLU(), nn.Linear(WIDE, DIM)
        )

    def forward(self, patches: Tensor) -> Tensor:
        maps = self.features(patches)
        # Flattened in TensorFlow's order, channels last.
        return self.embeddings(maps.permute(0, 2, 3, 1).flatten(1))


def load(where: str | Path | None, *, device: torch.device, sha256: str = "", **_: Any) -> AudioExtractor:
    """Load VGGish from `<file>` (safetensors or .pth) or `<file>?dither=-60&tail=pad`."""
    path, options = split_options(where, None, "drop")
    if not path:
        raise MetricError(
            f"extractor 'vggish' needs its weights: download {URL} and write vggish:<path of the file>"
        )
    file = Path(path)
    checksum = file_sha256(file, expected=sha256, missing=f"download {URL} to this path")
    with torch.device("meta"):
        network = VGGish()
    network.to_empty(device="cpu")
    tensors = {name: x for name, x in read_tensors(file).items() if not name.startswith("pproc.")}
    fill(network, tensors, file, "VGGish in torchvggish's layout")
    network.to(device).requires_grad_(False).eval()
    return AudioExtractor(
        name="vggish" if checksum.startswith(SHA256) else f"vggish@{checksum[:8]}",
        dim=DIM,
        sha256=checksum,
        front=f"{BANDS} log-mel bands 125-7500 Hz, offset {OFFSET:g}",
        rate=RATE,
        window=WINDOW,
        hop=PATCH * HOP,
        least=FRAME,
        device=device,
        network=lambda waves: network(log_mel(waves, OFFSET)[:, None]),
        **options._asdict(),
    )
