"""The two networks of an objective: the student, which is trained, and the teacher, its moving average."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.backbone.condition import Condition
from harness.backbone.config import BackboneConfig
from harness.backbone.network import Prediction
from harness.backbone.routing import Route
from harness.backbone.times import Times


@dataclass(frozen=True)
class Student:
    """The student network as a function, with its teacher, whose cost `phase` books separately."""

    model: nn.Module
    ema: nn.Module | None
    config: BackboneConfig
    phase: Callable[[str], AbstractContextManager] = nullcontext

    def __call__(
        self,
        x: Tensor,
        times: Times,
        y: Condition,
        *,
        taps: Collection[int] = (),
        groups: Tensor | None = None,
        extra: Tensor | None = None,
        heads: Collection[int] = (),
        outputs: Collection[int] = (),
        route: Route | None = None,
    ) -> Prediction:
        return self.model(
            x,
            times,
            y,
            taps=taps,
            groups=groups,
            extra=extra,
            heads=heads,
            outputs=outputs,
            route=route,
        )

    def teach(
        self, x: Tensor, times: Times, y: Condition, *, layer: int, groups: Tensor | None = None
    ) -> Tensor:
        """Return the output (B, T, D) of the teacher's block `layer` (1-based), without gradient.

        Deeper blocks do not run, and no token skips a block.
        """
        if self.ema is None:
            raise ValueError("this student has no teacher: it was built without an EMA network")
        with torch.no_grad(), self.phase("teacher"):
            return self.ema(x, times, y, taps=(layer,), stop_after=layer, groups=groups).hidden[layer]
