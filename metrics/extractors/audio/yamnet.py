"""YAMNet (AudioSet, 521 classes) in a TorchScript file: 1,024 features of log-mel patches of 0.96 s, every
0.48 s.

The file takes (B, 1, 96, 64) patches and gives the features, then the 521 logits. A recording is padded to
whole patches, as TensorFlow's model does, so that a spoken digit of 0.2 s has one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metrics.extractors.audio.base import DITHER_DBFS, AudioExtractor, split_options
from metrics.extractors.audio.log_mel import BANDS, FRAME, HOP, PATCH, RATE, WINDOW, log_mel
from metrics.extractors.torchscript import open_script
from metrics.files.hashing import file_sha256
from metrics.value import MetricError

SHA256 = "df95c65e344c481e87c08edbb88b3edc5c5e7d9c759fb6c30ca80b853c8e670d"
DIM, OFFSET, PATCH_HOP = 1024, 1e-3, 48


def load(where: str | Path | None, *, device: torch.device, sha256: str = "", **_: Any) -> AudioExtractor:
    """YAMNet of `<file>` or `<file>?dither=none`; a file of other weights is taken, and the name tells it
    apart."""
    path, options = split_options(where, DITHER_DBFS, "pad")
    if not path:
        raise MetricError("extractor 'yamnet' needs its TorchScript file: name it with weights")
    file = Path(path)
    found = file_sha256(file, expected=sha256)
    script = open_script(file, device)

    def network(waves: Tensor) -> Tensor:
        return script(log_mel(waves, OFFSET)[:, None])[:, :DIM]

    _check(script, file, device)
    return AudioExtractor(
        name="yamnet" if found == SHA256 else f"yamnet@{found[:8]}",
        dim=DIM,
        sha256=found,
        front=f"{BANDS} log-mel bands 125-7500 Hz, offset {OFFSET:g}",
        rate=RATE,
        window=WINDOW,
        hop=PATCH_HOP * HOP,
        least=FRAME,
        device=device,
        network=network,
        **options._asdict(),
    )


@torch.no_grad()
def _check(script: torch.jit.ScriptModule, file: Path, device: torch.device) -> None:
    try:
        found = script(torch.zeros(1, 1, PATCH, BANDS, device=device))
        right = found.ndim == 2 and found.shape[1] >= DIM
    except (RuntimeError, TypeError, AttributeError):
        right = False
    if not right:
        raise MetricError(
            f"{file} is not YAMNet: it does not give {DIM} features for a patch (1, 1, {PATCH}, {BANDS})"
        )
