"""What a step is given, and what a method drew for it.

B  samples of a micro-batch    C, H, W  channels and pixels    T  tokens
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.backbone.times import Times


class View(NamedTuple):
    """What a frozen encoder sees in the clean samples; the last two only when the method needs them."""

    tokens: Tensor
    """(B, T, dim) on the backbone's grid, float32."""
    summary: Tensor | None = None
    """(B, dim) one vector for the whole sample: the class token, or the mean of the tokens where there is
    none."""
    attention: Tensor | None = None
    """(B, n, heads, T, T) attention of the last n blocks among the tokens; rows sum to 1."""

    def to(self, device: torch.device) -> View:
        summary = None if self.summary is None else self.summary.to(device, non_blocking=True)
        attention = None if self.attention is None else self.attention.to(device, non_blocking=True)
        return View(self.tokens.to(device, non_blocking=True), summary, attention)


@dataclass(frozen=True)
class Batch:
    """What a step is given. B samples of a micro-batch, their global indices first."""

    index: np.ndarray
    """(B,) global sample indices: position in the whole training run."""
    x0: Tensor
    """(B, C, H, W) clean samples in [-1, 1] (or latents)."""
    y: Tensor
    """(B,) labels after label drop, decided once and shared by student and teacher; dropped ones are the null
    label."""
    label: Tensor
    """(B,) labels before label drop."""
    step: int = 1
    """The training step (1-based) that the batch belongs to."""
    views: tuple[View, ...] = ()
    """What each frozen encoder sees, in the order of the method's needs."""
    present: Tensor | None = None
    """(B, P) bool, which parts of each sample are there (data/mixed.py); None when every sample is whole."""
    pixels: Tensor | None = None
    """(B, C, H, W) the images of latents, in [-1, 1], if an encoder reads them; None if it reads x0."""
    place: np.ndarray | None = None
    """(B,) data set indices, by which encoders find cached features; None for samples that are not of a data
    set."""

    def to(self, device: torch.device) -> Batch:
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in ("x0", "y", "label")}
        for name in ("present", "pixels"):
            if (value := getattr(self, name)) is not None:
                moved[name] = value.to(device, non_blocking=True)
        return replace(self, **moved, views=tuple(view.to(device) for view in self.views))


@dataclass(frozen=True)
class Draw:
    """What a method drew for a batch."""

    noise: Tensor
    """(B, C, H, W) standard normal: x at time 1."""
    times: Times
    """Noise levels of the student's input."""
    groups: Tensor | None = None
    """(B, T) group of each token, for attention that is kept within groups; None for full attention."""
    extra: dict[str, Tensor] = field(default_factory=dict)
    """Whatever else a method draws, by name."""

    def to(self, device: torch.device) -> Draw:
        extra = {name: value.to(device, non_blocking=True) for name, value in self.extra.items()}
        groups = None if self.groups is None else self.groups.to(device, non_blocking=True)
        return Draw(self.noise.to(device, non_blocking=True), self.times.to(device), groups, extra)
