"""Batches that mix modalities: of a joint sample the whole, its silent video, or its sound alone, by given
shares.

Which of them a sample is depends on the seed and its global index alone, in a stream of its own; noise,
times, labels and order are drawn as ever, so that a mixed run sees the draws of one that is not. What an
absent part must not touch is told in methods/common/missing_parts.py. Evaluation draws whole samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from harness.runtime.random_streams import Streams


def draw_present(alone: Sequence[float], streams: Streams, index: np.ndarray) -> Tensor | None:
    """Which parts of each sample are there, (B, P) bool; None when every sample is whole.

    `alone`: of each part, the share of samples that are this part alone; () where nothing is mixed.
    """
    if not any(alone):
        return None
    shares = torch.tensor(alone, dtype=torch.float64)
    drawn = torch.bucketize(streams.uniform("modality", index).double(), shares.cumsum(0), right=True)
    present = (drawn[:, None] == torch.arange(len(alone))) | (drawn[:, None] == len(alone))
    return None if present.all() else present
