"""Dual-timestep scheduling: a second time per sample, and which tokens take it (Self-Flow Eq. 4, arXiv 2603.06507).

t, s ~ p(t) per sample;    M_i = [u_i < R_M] per token;    tau_i = s where M_i, else t.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from harness.draws import Streams
from harness.path import sample_times
from methods.method import MethodConfig, Setting


class DualConfig(MethodConfig):
    mask_ratio: float = Field(0.25, ge=0, le=0.5)
    """R_M: the share of tokens with the second time."""
    order: Literal["unsorted", "sorted"] = "unsorted"
    """unsorted is Self-Flow's (authors, issues 2 and 11): the second time is the noisier one in half of all cases. sorted
    makes it the noisier one always (arXiv 2607.02508 Eq. 5), which raises the mean noise of a token."""
    mask: Literal["bernoulli", "exact"] = "bernoulli"
    """bernoulli is Self-Flow's; exact takes floor(R_M T) tokens (the code of arXiv 2607.02508)."""
    second_time: Literal["independent", "near"] = "independent"
    """near: s in [t - 0.2, t], the ablation of Self-Flow's Fig. 11."""


def draw_times(
    config: DualConfig, setting: Setting, streams: Streams, index: np.ndarray
) -> tuple[Tensor, Tensor]:
    """t and s, (B,) each."""
    t = sample_times(setting.time, streams, "time", index)
    if config.second_time == "near":
        s = (t - 0.2 * streams.uniform("second_time", index)).clamp(min=0)
    else:
        s = sample_times(setting.time, streams, "second_time", index)
    return (torch.minimum(t, s), torch.maximum(t, s)) if config.order == "sorted" else (t, s)


def draw_mask(config: DualConfig, setting: Setting, streams: Streams, index: np.ndarray) -> Tensor:
    """Which tokens take the second time, (B, T) bool."""
    u = streams.uniform("mask", index, (setting.backbone.tokens,))
    if config.mask == "bernoulli":
        return u < config.mask_ratio
    return u.argsort(dim=1).argsort(dim=1) < int(config.mask_ratio * u.shape[1])
