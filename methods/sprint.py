"""SPRINT: most tokens skip the middle of the network, whose output joins the early one (arXiv 2510.21986).

L = L_gen over all tokens, from a network whose middle blocks a .. b are joined with the tokens e before them:

    d = block_b( ... block_a( e[kept] ))    d[skipped] = m, a learned mask token, for the share `rate`
    d = m for all tokens of a sample        with probability `path_drop`
    h = W [d ; e] + bias                    which the later blocks get

Of every 2 x 2 tokens one stays at rate 0.75, chosen uniformly, see `kept_tokens`. Sampling, evaluation and a
teacher's pass use all tokens. `schedule.until` is the last step with dropped tokens, for the last phase that
the authors train at rate 0; the path drop does not end.
Sampling with path-drop guidance, at w = `eval.method_guidance`:    v = v_m + w (v - v_m)
v_m is the velocity of the null condition with d = m, for which no middle block runs. It takes the place of
classifier-free guidance, so leave `eval.guidance` at 1. w = 1 is the network's own velocity.
Defaults: as released for XL (snap-research/Sprint 12c5fc9, configs/train/SIT_XL_SPRINT_256.yaml), 2 / 24 / 2
blocks, rate 0.75, path drop 0.1; w is 3.0 in configs/eval. It trains with `time.kind=logit_normal`.
Cost: fewer FLOPs than plain flow matching; a linear layer and a mask token in the network.
Off: at rate 0 and path drop 0 the network has no fusion, and is that of plain flow matching.
Disputed: the release names its mask token learnable and freezes it (`requires_grad=False`); here it is
learned. With REPA, its count of blocks is one ahead, so that `representation_depth: 8` aligns layer 7; here
`repa+sprint` aligns REPA's layer. Tokens inside the route are aligned at their places, as in the release.
Ours: networks of less than 5 blocks have one block before and after the route. In a text-conditioned network,
the text of a sample with a dropped path skips the middle blocks too.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from harness.backbone.condition import Condition, SharedText
from harness.backbone.routing import Route
from harness.backbone.times import Times
from harness.backbone.tokens import Part
from harness.flow.batch import Batch, Draw
from harness.flow.samplers import Network
from harness.runtime.random_streams import Streams
from methods.common.method import Method, Needs
from methods.common.routed import RoutedConfig


class Sprint(Method):
    source = "SPRINT, arXiv 2510.21986; snap-research/Sprint 12c5fc9"
    headline = "SiT-XL/2 FID 1.96 at 400 epochs with guidance, 1.62 with path-drop guidance (its README)"
    stacks_with = ("repa",)
    student_cost = (0.3, 1.1)
    guides = True
    masks_given = True

    class Config(RoutedConfig):
        off: ClassVar[dict[str, Any]] = {"rate": 0.0, "path_drop": 0.0}
        space: ClassVar[dict[str, Any]] = {
            "rate": {"choices": (0.5, 0.75, 0.875)},
            "path_drop": {"low": 0.05, "high": 0.2},
        }

        name: Literal["sprint"] = "sprint"
        rate: float = Field(0.75, ge=0, lt=1)
        """Share of a sample's tokens that skip the middle blocks."""
        path_drop: float = Field(0.1, ge=0, lt=1)
        """Share of samples without the output of the middle blocks."""
        pattern: Literal["grouped", "random"] = "grouped"
        """Tokens that stay: the same number in every square of the grid, or any."""

        @staticmethod
        def published_route(depth: int) -> tuple[int, int]:
            return published_route(depth)

        @property
        def fuses(self) -> bool:
            """True unless these settings are plain flow matching."""
            return bool(self.rate or self.path_drop)

        @property
        def unguided(self) -> str:
            return "" if self.path_drop else "has path_drop = 0, which trains no weaker velocity"

        def needs(self) -> Needs:
            resolved = self.first_layer is not None and self.last_layer is not None
            return Needs(fused=self.blocks) if self.fuses and resolved else Needs()

    config: Config

    def draw_more(self, streams: Streams, batch: Batch, draw: Draw) -> Draw:
        config, backbone = self.config, self.setting.backbone
        routes, dropped = config.routes(batch.step), None
        if not (routes or config.path_drop):
            return draw
        kept = torch.arange(backbone.tokens).expand(len(batch.index), -1)
        if routes:
            order = streams.uniform("route", batch.index, (backbone.tokens,))
            kept = kept_tokens(order, backbone.parts, config.rate, grouped=config.pattern == "grouped")
        if config.path_drop:
            dropped = streams.uniform("path_drop", batch.index) < config.path_drop
        return replace(draw, route=Route(*config.blocks, kept, dropped))

    def velocity(
        self,
        model: Network,
        x: Tensor,
        times: Times,
        y: Condition | SharedText,
        *,
        scale: float = 1.0,
        null: Condition | SharedText | None = None,
    ) -> Tensor:
        velocity = super().velocity(model, x, times, y)
        if scale == 1 or null is None or self.config.unguided:
            return velocity
        nothing = torch.empty(len(x), 0, dtype=torch.int64, device=x.device)
        shallow = model(x, times, null, route=Route(*self.config.blocks, nothing)).velocity
        return shallow + scale * (velocity - shallow)


def published_route(depth: int) -> tuple[int, int]:
    """Return the first and the last of the middle blocks (1-based) for a depth.

    >>> published_route(12), published_route(28), published_route(4)
    ((3, 10), (3, 26), (2, 3))
    """
    edge = min(2, (depth - 1) // 2)
    return edge + 1, depth - edge


def kept_tokens(order: Tensor, parts: tuple[Part, ...], rate: float, *, grouped: bool) -> Tensor:
    """Return the positions of the tokens that stay, (B, S), in rising order, from uniform values (B, T).

    Grouped, every square of 2 x 2 tokens of a grid keeps the same number, or of 4 x 4 if 2 x 2 cannot have
    the rate (utils.py `prepare_mask_and_input`). In a video, squares extend over time too. Otherwise, and if
    no square has the rate or divides the grid, floor(T (1 - rate)) tokens of a part stay, at least one.
    """
    kept, first = [], 0
    for part in parts:
        values = order[:, first : first + part.tokens]
        squares = squares_of(part, rate) if grouped else None
        if squares is None:
            # Without rounding, 1 - 0.9 is a little less than 0.1, and one of two tokens would be lost.
            stay = math.floor(round(part.tokens * (1 - rate), 6))
            squares = torch.arange(part.tokens)[None], max(1, stay)
        places, stay = squares
        chosen = values[:, places].argsort(dim=2, descending=True, stable=True)[:, :, :stay]
        positions = places.expand(len(order), -1, -1).gather(2, chosen).flatten(1)
        kept.append(first + positions.sort(dim=1).values)
        first += part.tokens
    return torch.cat(kept, dim=1)


def squares_of(part: Part, rate: float) -> tuple[Tensor, int] | None:
    """Return the positions of the tokens of every square, (squares, tokens), and how many of one stay; None
    without squares that keep their share."""
    for side in (2, 4):
        stay = side ** len(part.grid) * (1 - rate)
        if stay >= 1 and math.isclose(stay, round(stay)) and not any(axis % side for axis in part.grid):
            places = torch.arange(part.tokens).reshape(
                [n for axis in part.grid for n in (axis // side, side)]
            )
            axes = range(0, places.dim(), 2), range(1, places.dim(), 2)
            return places.permute(*axes[0], *axes[1]).reshape(-1, side ** len(part.grid)), round(stay)
    return None
