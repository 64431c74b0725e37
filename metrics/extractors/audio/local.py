"""Audio without a download: the classifier of images that is trained here, on log-mel patches as grey
pictures.

A patch (96 frames, 64 bands) becomes bytes, one for each 0.05 of the natural logarithm (0.4 dB), and carries
the label of its recording. For video the same classifier serves by the name `video:local`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metrics.extractors import local
from metrics.extractors.audio.base import CHUNK, DITHER_DBFS, AudioExtractor, split_options
from metrics.extractors.audio.log_mel import BANDS, FRAME, HOP, RATE, WINDOW, log_mel
from metrics.files.recordings import Recording
from metrics.value import MetricError

OFFSET, PATCH_HOP = 1e-3, 48
QUIET, STEP = -7.0, 0.05
"""Byte b stands for QUIET + b STEP; log(. + OFFSET) of silence is -6.9, of a full-scale tone 4.6."""


def load(
    where: Any,
    *,
    device: torch.device,
    images: Sequence[Recording] | None = None,
    labels: Any = None,
    **given: Any,
) -> AudioExtractor:
    """The classifier of recordings (given as `images`) at 16 kHz and their labels (n,); options as
    `?dither=none`."""
    path, options = split_options(where, DITHER_DBFS, "pad")
    if path:
        raise MetricError("extractor 'local-audio' is trained here and takes no weights")
    if images is None or labels is None or len(images) != len(labels):
        raise MetricError(
            "extractor 'local-audio' is trained on recordings: give them, and one label for each"
        )
    shape = {"rate": RATE, "window": WINDOW, "hop": PATCH_HOP * HOP, "least": FRAME, **options._asdict()}
    front = f"{BANDS} log-mel bands 125-7500 Hz, offset {OFFSET:g}, bytes of {STEP:g}"
    cut = AudioExtractor("local-audio", 0, "", front, device=device, network=pictures, **shape)
    windows = [cut.windows(recording) for recording in images]
    patches = torch.cat([pictures(part) for part in torch.cat(windows).split(CHUNK)])
    each = np.repeat(np.asarray(labels), [len(part) for part in windows])
    trained = local.load(None, device=device, images=patches.numpy(), labels=each, **given)
    return AudioExtractor(
        name="local-audio",
        dim=trained.dim,
        sha256=trained.sha256,
        front=f"{front}; {trained.preprocessing}",
        device=device,
        network=lambda waves: trained(pictures(waves)),
        accuracy=trained.accuracy,
        **shape,
    )


def pictures(waves: Tensor) -> Tensor:
    """float32 (B, n) at 16 kHz -> log-mels as uint8 (B, 1, frames, bands)."""
    levels = (log_mel(waves, OFFSET) - QUIET) / STEP
    return levels.round().clamp(0, 255).to(torch.uint8)[:, None]
