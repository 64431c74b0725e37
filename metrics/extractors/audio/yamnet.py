"""YAMNet (AudioSet, 521 classes): 1,024 features of log-mel patches of 0.96 s, every 0.48 s.

It is read from a TorchScript file that maps patches (B, 1, 96, 64) to the features followed by the 521
logits. Recordings are padded to complete patches, as in TensorFlow's model, so that a spoken digit of 0.2 s
has one.
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
    """Load YAMNet from `<file>` or `<file>?dither=none`.

    A file with other weights is accepted; the extractor's name then includes its checksum.
    """
    path, options = split_options(where, DITHER_DBFS, "pad")
    if not path:
        raise MetricError("extractor 'yamnet' needs a TorchScript file; write yamnet:<path of the file>")
    file = Path(path)
    checksum = file_sha256(file, expected=sha256)
    script = open_script(file, device)

    def network(waves: Tensor) -> Tensor:
        return script(log_mel(waves, OFFSET)[:, None])[:, :DIM]

    _check(script, file, device)
    return AudioExtractor(
        name="yamnet" if checksum == SHA256 else f"yamnet@{checksum[:8]}",
        dim=DIM,
        sha256=checksum,
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
    """Raise `MetricError` unless the network returns at least DIM features for a patch."""
    try:
        features = script(torch.zeros(1, 1, PATCH, BANDS, device=device))
        valid = features.ndim == 2 and features.shape[1] >= DIM
    except (RuntimeError, TypeError, AttributeError):
        valid = False
    if not valid:
        raise MetricError(
            f"{file} is not YAMNet: it does not return {DIM} features for a patch (1, 1, {PATCH}, {BANDS})"
        )
