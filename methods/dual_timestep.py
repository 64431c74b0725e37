"""Dual-timestep scheduling: Self-Flow without its representation loss (arXiv 2603.06507, Fig. 2b "DTS").

L = mean || v(x_tau, tau, y) - (eps - x0) ||^2,    x_tau = (1 - tau) x0 + tau eps,    tau_i in {t, s}

methods/common/dual_timesteps.py describes the draw of t and s per sample, and of tau_i per token.
Cost: two rows of modulation per sample; no additional pass.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from harness.flow.batch import Batch, Draw
from harness.runtime.random_streams import Streams
from methods.common.dual_timesteps import DualConfig, draw_mask, draw_times, dual_times
from methods.common.method import Method, Needs


class DualTimestep(Method):
    source = "Self-Flow, arXiv 2603.06507"
    headline = "SiT-XL/2 FID about 15 against 17 at 400k steps (reading of Self-Flow Fig. 2b)"
    parts_mixed = True
    masks_given = True

    class Config(DualConfig):
        off: ClassVar[dict[str, Any]] = {"mask_ratio": 0.0}
        space: ClassVar[dict[str, Any]] = {"mask_ratio": {"low": 0.05, "high": 0.5}}

        name: Literal["dual_timestep"] = "dual_timestep"

        def needs(self) -> Needs:
            return Needs(times=2 if self.masks else 1)

    config: Config

    def draw(self, streams: Streams, batch: Batch) -> Draw:
        if not self.config.masks:
            return super().draw(streams, batch)
        t, s = self.config.in_order(*draw_times(self.config, self.setting, streams, batch.index))
        mask = draw_mask(self.config, self.setting, streams, batch.index)
        return Draw(
            streams.normal("noise", batch.index, batch.x0.shape[1:]), dual_times(t, s, mask, self.setting)
        )
