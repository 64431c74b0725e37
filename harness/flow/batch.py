"""The batch of a training step, and a method's draws for it.

B  samples of a micro-batch    C, H, W  channels and pixels    T  tokens    P  parts
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.backbone.condition import Condition
from harness.backbone.routing import Route
from harness.backbone.times import Times


class View(NamedTuple):
    """Features of the clean samples from a frozen encoder; the last two only if the method needs them."""

    tokens: Tensor
    """(B, T, dim) on the backbone's grid, float32."""
    summary: Tensor | None = None
    """(B, dim) one vector per sample: the class token, or the mean of the tokens without one."""
    attention: Tensor | None = None
    """(B, n, heads, T, T) attention of the last n blocks among the tokens; rows sum to 1."""

    def to(self, device: torch.device) -> View:
        """Return the view on a device."""
        summary = None if self.summary is None else self.summary.to(device, non_blocking=True)
        attention = None if self.attention is None else self.attention.to(device, non_blocking=True)
        return View(self.tokens.to(device, non_blocking=True), summary, attention)


@dataclass(frozen=True)
class Batch:
    """The samples of a micro-batch, with everything that is known about them."""

    index: np.ndarray
    """(B,) global sample indices: the position in the training run."""
    x0: Tensor
    """(B, C, H, W) clean samples in [-1, 1] (or latents)."""
    y: Condition
    """The condition after drop, which student and teacher share: labels (B,) or texts. Dropped ones are the
    null label or the empty caption."""
    label: Tensor
    """(B,) labels before drop."""
    step: int = 1
    """The training step (1-based) that the batch belongs to."""
    views: tuple[View, ...] = ()
    """The view of each frozen encoder, in the order of the method's needs."""
    present: Tensor | None = None
    """(B, P) bool, which parts a sample has (data/modality_dropout.py); None if all samples have all."""
    pixels: Tensor | None = None
    """(B, C, H, W) the images of latents, in [-1, 1], if an encoder reads them; None if it reads x0."""
    place: np.ndarray | None = None
    """(B,) data set indices, by which encoders find cached features; None without a data set."""
    given: Condition | None = None
    """The texts before drop, if the condition is a text and the method needs them."""

    @property
    def undropped(self) -> Condition:
        """The condition before drop; raises ValueError for texts whose batch does not hold it."""
        if self.given is None and not isinstance(self.y, Tensor):
            raise ValueError("this batch has no texts before drop: declare them in `needs()`, as `undropped`")
        return self.label if self.given is None else self.given

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device; indices stay in memory of the host."""
        # Any: the fields have different types.
        moved: dict[str, Any] = {}
        for name in ("x0", "y", "label"):
            moved[name] = getattr(self, name).to(device, non_blocking=True)
        for name in ("given", "present", "pixels"):
            if (value := getattr(self, name)) is not None:
                moved[name] = value.to(device, non_blocking=True)
        return replace(self, **moved, views=tuple(view.to(device) for view in self.views))


@dataclass(frozen=True)
class Draw:
    """A method's random draws for a batch."""

    noise: Tensor
    """(B, C, H, W) standard normal: x at time 1."""
    times: Times
    """Noise levels of the student's input."""
    groups: Tensor | None = None
    """(B, T) group of each token, not negative, for attention within groups; None for full attention."""
    extra: dict[str, Tensor] = field(default_factory=dict)
    """Other draws of the method, by name."""
    route: Route | None = None
    """Tokens of the student's pass that skip some blocks; None for none."""
    shared: dict[str, Tensor] = field(default_factory=dict)
    """Draws that all samples of a step share, by name, whatever their micro-batch."""
    twin: Draw | None = None
    """Another draw for the same samples, of a method that compares two noisings of one; None for none."""

    def to(self, device: torch.device) -> Draw:
        """Return the draws on a device."""
        extra, shared = (
            {name: value.to(device, non_blocking=True) for name, value in draws.items()}
            for draws in (self.extra, self.shared)
        )
        groups = None if self.groups is None else self.groups.to(device, non_blocking=True)
        route = None if self.route is None else self.route.to(device)
        twin = None if self.twin is None else self.twin.to(device)
        noise = self.noise.to(device, non_blocking=True)
        return Draw(noise, self.times.to(device), groups, extra, route, shared, twin)
