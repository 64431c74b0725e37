"""Dual-timestep scheduling: a second time per sample, and the mask of its tokens (Self-Flow Eq. 4).

t, s ~ p(t) per sample;    M_i = [u_i < R_M] per token;    tau_i = s where M_i, else t (arXiv 2603.06507).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from harness.backbone.times import Times
from harness.config.parts import FLAT_NAMES, HasParts
from harness.config.section import HASHED_IF_SET, Section
from harness.flow.batch import Batch, Draw
from harness.flow.path import part_times, times_of_parts
from harness.runtime.random_streams import Streams
from methods.common.method import MethodConfig, Setting


class MaskPart(Section):
    mask_ratio: float | None = Field(default=None, ge=0, le=0.5, json_schema_extra=HASHED_IF_SET)
    """R_M of this part, if it differs; the paper has 0.1 for video and 0.5 for audio."""


class MaskParts(Section):
    """Parts of a sample that may have an R_M different from `mask_ratio`."""

    audio: MaskPart = MaskPart()


class DualConfig(MethodConfig, HasParts):
    flat_names: ClassVar = FLAT_NAMES["method"]

    mask_ratio: float = Field(default=0.25, ge=0, le=0.5)
    """R_M: the fraction of tokens with the second time."""
    parts: MaskParts = MaskParts()
    order: Literal["unsorted", "sorted"] = "unsorted"
    """unsorted is Self-Flow's (authors, issues 2 and 11): the second time is the noisier one in half of all
    cases. sorted makes it always the noisier one (arXiv 2607.02508 Eq. 5), which raises the mean noise of a
    token."""
    mask: Literal["bernoulli", "exact"] = "bernoulli"
    """bernoulli is Self-Flow's; exact selects R_M T tokens, rounded (code of arXiv 2607.02508)."""
    second_time: Literal["independent", "near"] = "independent"
    """near draws s in [t - 0.2, t], the ablation of Self-Flow's Fig. 11."""

    @property
    def masks(self) -> bool:
        """True if some tokens have the second time."""
        return bool(self.mask_ratio or any(part.mask_ratio for _, part in self.parts))

    def mask_ratio_of(self, kind: str) -> float:
        """Return R_M for a kind of part."""
        part: MaskPart = dict(self.parts).get(kind, MaskPart())
        return self.mask_ratio if part.mask_ratio is None else part.mask_ratio

    def in_order(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two times in the configured order.

        Do not sort a sample whose tokens all have the first time: sorted, that time is not a draw from p(t).
        """
        return (torch.minimum(t, s), torch.maximum(t, s)) if self.order == "sorted" else (t, s)


def draw_dual(config: DualConfig, setting: Setting, streams: Streams, batch: Batch) -> Draw:
    """Return noise and the two times of each sample. Their minimum, (B, P), is the draw `cleaner`.

    Without a mask all tokens have time t.
    """
    t, s = draw_times(config, setting, streams, batch.index)
    noise = streams.normal("noise", batch.index, batch.x0.shape[1:])
    times = times_of_parts(t, setting.backbone)
    if config.masks:
        mask = draw_mask(config, setting, streams, batch.index)
        times = dual_times(*config.in_order(t, s), mask, setting)
    return Draw(noise, times, extra={"cleaner": torch.minimum(t, s)})


def draw_times(
    config: DualConfig, setting: Setting, streams: Streams, index: np.ndarray
) -> tuple[Tensor, Tensor]:
    """Return t and s per sample, (B, 1) each, or per part, (B, P), unsorted."""
    t = part_times(setting.time, setting.backbone, streams, "time", index)
    if config.second_time == "near":
        s = (t - 0.2 * streams.uniform("second_time", index)[:, None]).clamp(min=0)
    else:
        s = part_times(setting.time, setting.backbone, streams, "second_time", index)
    return t, s


def draw_mask(config: DualConfig, setting: Setting, streams: Streams, index: np.ndarray) -> Tensor:
    """Return the mask of tokens with the second time, (B, T) bool."""
    backbone = setting.backbone
    u = streams.uniform("mask", index, (backbone.tokens,))
    ratios = [config.mask_ratio_of(part.kind) for part in backbone.parts]
    each = u.split([part.tokens for part in backbone.parts], dim=1)
    if config.mask == "bernoulli":
        return torch.cat([u < ratio for u, ratio in zip(each, ratios, strict=True)], dim=1)
    ranked = [
        u.argsort(dim=1).argsort(dim=1) < int(r * u.shape[1] + 0.5) for u, r in zip(each, ratios, strict=True)
    ]
    return torch.cat(ranked, dim=1)


def dual_times(t: Tensor, s: Tensor, mask: Tensor, setting: Setting) -> Times:
    """Return times s where the mask (B, T) is set and t elsewhere, of each token's part; t, s: (B, P)."""
    if t.shape[1] == 1:
        return Times.dual(t[:, 0], s[:, 0], mask)
    parts = t.shape[1]
    return Times(torch.cat([t, s], dim=1), setting.backbone.part_of_token + parts * mask)
