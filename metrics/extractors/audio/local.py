"""The audio extractor that needs no download: the `local` image classifier, trained on log-mel patches.

A patch (96 frames, 64 bands) is quantised to bytes in steps of 0.05 in the natural logarithm (0.4 dB) and has
the label of its recording. The counterpart for video is `video:local`.
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
"""Byte b is the log-mel value QUIET + b * STEP. Silence has -6.9 and a full-scale tone 4.6."""


def load(
    where: Any,
    *,
    device: torch.device,
    images: Sequence[Recording] | None = None,
    labels: Any = None,
    **given: Any,
) -> AudioExtractor:
    """Return the classifier trained on recordings at 16 kHz (given as `images`) and their labels (n,).

    `where` holds options, for example `?dither=none`.
    """
    path, options = split_options(where, DITHER_DBFS, "pad")
    if path:
        raise MetricError(
            "extractor 'local-audio' is trained on the data set and takes no weights; remove them"
        )
    if images is None or labels is None or len(images) != len(labels):
        raise MetricError(
            "extractor 'local-audio' is trained on recordings; give recordings and one label for each"
        )
    shape = {"rate": RATE, "window": WINDOW, "hop": PATCH_HOP * HOP, "least": FRAME, **options._asdict()}
    front = f"{BANDS} log-mel bands 125-7500 Hz, offset {OFFSET:g}, bytes of {STEP:g}"
    untrained = AudioExtractor("local-audio", 0, "", front, device=device, network=log_mel_bytes, **shape)
    windows = [untrained.windows(recording) for recording in images]
    patches = torch.cat([log_mel_bytes(part) for part in torch.cat(windows).split(CHUNK)])
    each = np.repeat(np.asarray(labels), [len(part) for part in windows])
    trained = local.load(None, device=device, images=patches.numpy(), labels=each, **given)
    return AudioExtractor(
        name="local-audio",
        dim=trained.dim,
        sha256=trained.sha256,
        front=f"{front}; {trained.preprocessing}",
        device=device,
        network=lambda waves: trained(log_mel_bytes(waves)),
        accuracy=trained.accuracy,
        **shape,
    )


def log_mel_bytes(waves: Tensor) -> Tensor:
    """Return the log-mel spectrograms uint8 (B, 1, frames, bands) of waves float32 (B, n) at 16 kHz."""
    levels = (log_mel(waves, OFFSET) - QUIET) / STEP
    return levels.round().clamp(0, 255).to(torch.uint8)[:, None]
