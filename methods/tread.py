"""TREAD: half of the tokens skip the middle of the network in training (Krause et al., arXiv 2501.04765).

L = L_gen over all tokens, where the share `rate` of each sample's tokens skips blocks a .. b:

    h_kept = block_b( ... block_a( h[kept] ))    h[skipped] is unchanged    both return by position

The T - floor(rate T) tokens that stay are drawn uniformly for each sample and step. Sampling, evaluation and
a teacher's pass use all tokens in all blocks. `schedule.until` is the last step with routing, for a last
phase without it.
Defaults: as released for B (CompVis/tread fccf77c, configs/model/tread.yaml), rate 0.5 and blocks 3 to 9,
which the release counts from 0: 2 to 8, both included.
Cost: fewer FLOPs than plain flow matching; no head, no teacher, no encoder.
Ours: for deeper networks the route also ends three blocks before the last one, and in shallower ones at three
quarters of their depth. The release has no configuration of other sizes. L_gen is flow matching, as in the
release's rf.py, which draws logit-normal times (`time.kind=logit_normal`). Its training configuration has
EDM's loss. Its guidance by two rates (rf.py, `sample_tread`) is not implemented. The block after the route
runs in the run's precision, in the release in float32.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

from harness.backbone.routing import Route
from harness.flow.batch import Batch, Draw
from harness.runtime.random_streams import Streams
from methods.common.method import Method
from methods.common.routed import RoutedConfig


class Tread(Method):
    source = "TREAD, arXiv 2501.04765; CompVis/tread fccf77c"
    headline = "DiT-XL/2 guided FID 1.69 (reference notes on TREAD)"
    stacks_with = ("repa",)
    student_cost = (0.3, 1.0)
    masks_given = True

    class Config(RoutedConfig):
        space: ClassVar[dict[str, Any]] = {"rate": {"low": 0.1, "high": 0.75}}

        name: Literal["tread"] = "tread"

        @staticmethod
        def published_route(depth: int) -> tuple[int, int]:
            return published_route(depth)

    config: Config

    def draw_more(self, streams: Streams, batch: Batch, draw: Draw) -> Draw:
        config, tokens = self.config, self.setting.backbone.tokens
        if not config.routes(batch.step):
            return draw
        stay = tokens - int(tokens * config.rate)
        order = streams.uniform("route", batch.index, (tokens,)).argsort(dim=1, stable=True)
        kept = order[:, :stay].sort(dim=1).values
        return replace(draw, route=Route(*config.blocks, kept))


def published_route(depth: int) -> tuple[int, int]:
    """Return the first and the last block of the route (1-based) for a depth.

    >>> published_route(12), published_route(28), published_route(4)
    ((3, 9), (3, 25), (2, 3))
    """
    first = max(1, min(3, depth // 2))
    return first, max(first, depth - 3 if depth > 12 else round(0.75 * depth))
