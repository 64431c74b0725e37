"""Parts that are not there: in a batch that mixes modalities (harness/data/modality_dropout.py) a sample may
lack its sound or its video.

A part that is absent does not exist for the one that is there: attention keeps them apart, and no mean counts
its tokens. Every sample weighs the same in a loss, whatever it is made of, so that a loss does not depend on
how a batch is divided:

    L_gen = mean_b W / W_b sum_{p in b} w_p mean || v - (eps - x0) ||^2,    W the weights of all parts, W_b
    those of b's

    B  samples    P  parts    T  tokens    D  features
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.backbone.sit import SiTConfig
from harness.flow.batch import Batch


def present_tokens(batch: Batch, backbone: SiTConfig) -> Tensor | None:
    """Which tokens are there, (B, T) bool; None when all are."""
    return None if batch.present is None else backbone.of_tokens(batch.present)


def separated(groups: Tensor | None, batch: Batch, backbone: SiTConfig) -> Tensor | None:
    """Groups of attention (B, T), each divided into the tokens that are there and those that are not."""
    present = present_tokens(batch, backbone)
    if present is None:
        return groups
    return present.long() if groups is None else 2 * groups.long() + present


def weights_of_samples(present: Tensor, weights: Sequence[float]) -> Tensor:
    """Of each part of each sample in the loss, (B, P) float32: 0 where absent, the sum the same for every
    sample."""
    each = present * torch.tensor(weights, device=present.device)
    return each * (sum(weights) / each.sum(dim=1, keepdim=True))


def mean_of_tokens(values: Tensor, present: Tensor | None) -> Tensor:
    """The mean over samples of each one's mean over the tokens that are there, 0 where there are none; values
    (B, T) or (B, T, D)."""
    if present is None:
        return values.mean()
    each = present.to(values.dtype) / present.sum(dim=1, keepdim=True).clamp(min=1)
    return ((values if values.dim() == 2 else values.mean(dim=-1)) * each).sum(dim=1).mean()
