"""Missing parts: with modality dropout (harness/data/modality_dropout.py), a sample may lack audio or video.

A missing part has no influence: attention separates its tokens from the others, and means leave them out.
Their groups are negative, which keeps the text of a text-conditioned network away from them too.
Every sample has the same weight in a loss, so that the loss does not depend on how a batch is divided:

    L_gen = mean_b W / W_b sum_{p in b} w_p mean || v - (eps - x0) ||^2

W is the sum of the weights of all parts, and W_b that of sample b's parts.

    B  samples    P  parts    T  tokens    D  features
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.backbone.config import BackboneConfig
from harness.flow.batch import Batch


def present_tokens(batch: Batch, backbone: BackboneConfig) -> Tensor | None:
    """Return the mask of tokens of existing parts, (B, T) bool; None if no part is missing."""
    return None if batch.present is None else backbone.of_tokens(batch.present)


def separated(groups: Tensor | None, batch: Batch, backbone: BackboneConfig) -> Tensor | None:
    """Return groups of attention (B, T), in which tokens of missing parts have negative groups -1 - g."""
    present = present_tokens(batch, backbone)
    if present is None:
        return groups
    each = torch.zeros_like(present, dtype=torch.int64) if groups is None else groups.long()
    return torch.where(present, each, -1 - each)


def weights_of_samples(present: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the weight of each part of each sample in the loss, (B, P) float32.

    Missing parts have weight 0, and the sum is the same for every sample.
    """
    each = present * torch.tensor(weights, device=present.device)
    return each * (sum(weights) / each.sum(dim=1, keepdim=True))


def mean_of_tokens(values: Tensor, present: Tensor | None) -> Tensor:
    """Return the mean over samples of their means over tokens in `present`; values: (B, T) or (B, T, D).

    A sample without such tokens counts as 0.
    """
    if present is None:
        return values.mean()
    each = present.to(values.dtype) / present.sum(dim=1, keepdim=True).clamp(min=1)
    return ((values if values.dim() == 2 else values.mean(dim=-1)) * each).sum(dim=1).mean()
