"""Modality dropout: a joint sample keeps all parts, only its video, or only its sound, by given shares.

The parts that a sample keeps depend only on the seed and its global index, through a separate random stream.
Noise, times, labels and order are therefore those of the run without dropout. methods/common/missing_parts.py
keeps missing parts out of the loss. Evaluation draws complete samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from harness.runtime.random_streams import Streams


def draw_present(alone: Sequence[float], streams: Streams, index: np.ndarray) -> Tensor | None:
    """Draw the parts that each sample keeps, bool (B, P); None when every sample keeps all.

    `alone` holds, for each part, the share of samples that consist of it only; () turns dropout off.
    """
    if not any(alone):
        return None
    shares = torch.tensor(alone, dtype=torch.float64)
    drawn = torch.bucketize(streams.uniform("modality", index).double(), shares.cumsum(0), right=True)
    present = (drawn[:, None] == torch.arange(len(alone))) | (drawn[:, None] == len(alone))
    return None if present.all() else present
