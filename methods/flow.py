"""Plain flow matching: the baseline of every race.

L = mean || v_theta(x_t, t, y) - (eps - x0) ||^2,    x_t = (1 - t) x0 + t eps,    t ~ p(t) per sample.

Source: SiT (arXiv 2401.08740) with the linear path and velocity prediction; REPA loss.py without its
projection term. Cost: one forward and one backward pass.
"""

from __future__ import annotations

from typing import Literal

from methods.common.method import Method, MethodConfig


class Flow(Method):
    source = "SiT, arXiv 2401.08740"
    headline = "SiT-XL/2 FID 8.26 at 7M steps, SDE, no guidance (SiT Table 8)"
    parts_mixed = True
    masks_given = True

    class Config(MethodConfig):
        name: Literal["flow"] = "flow"
