"""MMDiT, the joint blocks of SD3 (Esser et al., arXiv 2403.03206) as REPA released them for text-to-image.

The network equals sihyun-yu/REPA 67f7145 `models/mmdit.py`, including parameter names, except that its
`joint_blocks` are `blocks` here. Image and text tokens have separate weights and one attention, with the text
first. The condition is the time alone: text enters through its tokens, without positions or a pooled vector.

There are five differences in the computation, and none in the result. Attention is fused. Modulation is
computed once per noise level (times.py), and not at all for text whose outputs nothing reads: the last block,
and the block that ends a pass, compute only keys and values of the text. Texts that several samples share
are embedded, and projected in the first block, once (`SharedText`).

Padding tokens of the text are attended to as in the released code, unless the condition has a mask.

    B  samples    K  levels    T  image tokens    L  text tokens    S  both    D  width    N  heads
    C  channels of a head
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.backbone.attention import Attends, attention
from harness.backbone.condition import CLIP_L, Condition, SharedText, Text, TextShape
from harness.backbone.config import BackboneConfig
from harness.backbone.layers import Mlp, modulate
from harness.backbone.network import Backbone, Prediction
from harness.backbone.rotary import rotate
from harness.backbone.routing import Route, Surroundings
from harness.backbone.times import Times

TextTime = Literal["mean", "min", "clean"]


@dataclass(frozen=True)
class MMDiTConfig(BackboneConfig):
    """Everything that determines the shape of an MMDiT."""

    text: TextShape = CLIP_L
    """Shape of the text features. Texts of other lengths can be passed too."""
    text_time: TextTime = "mean"
    """Time of the text stream if image tokens have different times. With one time per sample, `mean` and
    `min` are that time, as released. Text is never noised, and Self-Flow's paper does not state which time it
    gets (Self-Flow issue 9).

    mean     the mean over image tokens of the time embedding (kohya-ss/musubi-tuner, pull request 969)
    min      the smallest time of a token, which is the one of Self-Flow's teacher (arXiv 2603.06507, Eq. 6)
    clean    0, the level of a token without noise in diffusion forcing (arXiv 2407.01392)
    """

    def blank_condition(self, size: int) -> Text:
        return Text(torch.zeros(size, self.text.length, self.text.dim))


class MMDiT(Backbone):
    """The network that is conditioned on texts."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__(config)
        self.text_time = config.text_time
        depth, width, heads = config.size
        self._build_embedders()
        self.context_embedder = nn.Linear(config.text.dim, width)
        self._build_positions()
        self.blocks = nn.ModuleList(
            JointBlock(width, heads, pre_only=layer == depth) for layer in range(1, depth + 1)
        )
        self._build_outputs()

    def forward(
        self,
        x: Tensor,
        times: Times,
        y: Condition | SharedText,
        *,
        taps: Collection[int] = (),
        stop_after: int | None = None,
        groups: Tensor | None = None,
        extra: Tensor | None = None,
        heads: Collection[int] = (),
        outputs: Collection[int] = (),
        route: Route | None = None,
    ) -> Prediction:
        """Predict the velocity for texts y; see `Backbone`. Layers and heads are those of the image stream.

        With `groups`, image tokens of every group attend to all text tokens. Text tokens attend to the image
        only in samples of one group, so that nothing passes from one group to another through the text.
        Negative groups are those of missing parts, which the text does not attend to, nor take its time from.

        `times` may have one row for all samples, as in sampling.
        """
        text, rows, attended = self._text(y)
        c_BKD = self.t_embedder(times.levels)
        c_text = F.silu(self._text_time(times, c_BKD, groups))
        if self.given_tokens is not None:
            # The text has the time of the sample, which given tokens do not lower.
            times = self._with_given(times)
            c_BKD = self.t_embedder(times.levels)
        c_BKD = F.silu(c_BKD)
        h, turns = self._tokens(x, extra)
        mask = attention_mask(attended, groups, (text.shape[1], h.shape[1]))
        if rows is not None and len(c_text) > 1:
            # Texts with different times are not the same after the first modulation.
            text, rows = text[rows], None
        if turns is not None:
            turns = torch.cat([_unturned(turns, text.shape[1]), turns], dim=1)
        if route is not None and extra is not None:
            route = route.with_extra()
        passage = self._passage(Surroundings(c_BKD, times, mask, turns), route, ahead=text.shape[1])
        hidden, queries_keys, velocities = {}, {}, {}
        early = None
        for layer, block in enumerate(self.blocks, start=1):
            h, given = passage.into(layer, h)
            if route is not None and route.dropped is not None and layer == route.first:
                early = _of(rows, cast(Tensor, text))
            if passage.runs(layer):
                text, h, compared = self._run_block(block, text, h, c_text, *given, rows, layer != stop_after)
                rows = None
                if layer in heads:
                    queries_keys[layer] = compared
            if route is not None and layer == route.last and early is not None and text is not None:
                # The text of a dropped sample skips the blocks too, or it would carry their output.
                text = torch.where(cast(Tensor, route.dropped)[:, None, None], early, text)
            if layer in taps:
                hidden[layer] = passage.every(h)
            if layer in outputs:
                velocities[layer] = self._velocity_at(layer, x, passage.every(h), c_BKD, times)
            h = passage.beyond(layer, h)
            if layer == stop_after:
                # Only the teacher stops early, and its caller does not read the velocity.
                return Prediction(cast(Tensor, None), hidden, heads=queries_keys, outputs=velocities)
        velocity, extra = self._velocity(x, h, c_BKD, times, extra is not None)
        return Prediction(velocity, hidden, extra, queries_keys, velocities)

    def _text(self, y: Condition | SharedText) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the tokens (U, L, D) of U texts, the text of each sample, and the mask (B, L) of attended
        tokens.

        Without shared texts U is B, and the second value is None.
        """
        if isinstance(y, Text):
            return self.context_embedder(y.features), None, y.mask
        if isinstance(y, SharedText):
            return y.embedded(self.context_embedder), y.rows, y.mask
        raise TypeError(
            f"an MMDiT is conditioned on text features, but got {type(y).__name__}; labels need "
            'backbone.kind = "sit"'
        )

    def _text_time(self, times: Times, c_BKD: Tensor, groups: Tensor | None) -> Tensor:
        """Return the embedding of the text stream's time, (B or 1, 1, D)."""
        if self.text_time == "clean":
            return self.t_embedder(times.levels.new_zeros(1, 1))
        if c_BKD.shape[1] == 1:
            return c_BKD
        present = None if groups is None else groups >= 0
        if self.text_time == "min":
            levels = times.per_token_levels()
            if present is not None:
                levels = levels.masked_fill(~present, 1.0)
            return self.t_embedder(levels.amin(dim=1, keepdim=True))
        shares = times.shares(present)[:, :, None].to(c_BKD.dtype)
        return (shares * c_BKD).sum(dim=1, keepdim=True)


class JointBlock(Attends):
    """A block of two streams with one attention. Its text stream ends with it if it is `pre_only`."""

    def __init__(self, width: int, heads: int, *, pre_only: bool) -> None:
        super().__init__()
        self.heads = heads
        self.context_block = Stream(width, pre_only=pre_only)
        self.x_block = Stream(width, pre_only=False)

    def forward(
        self,
        text: Tensor,
        h: Tensor,
        c_text: Tensor,
        c_BKD: Tensor,
        times: Times,
        mask: Tensor | None,
        turns: Tensor | None,
        rows: Tensor | None,
        continues: bool,
    ) -> tuple[Tensor | None, Tensor, tuple[Tensor, Tensor]]:
        """Return text tokens (B, L, D), image tokens (B, T, D), and queries and keys of the image tokens.

        With `rows` (B,), the text tokens (U, L, D) are those of different texts. Text tokens are None unless
        the text stream `continues`.
        """
        context, image = self.context_block, self.x_block
        continues = continues and not context.pre_only
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = map(times.select, image.modulation(c_BKD))
        of_text = context.modulation(c_text)
        qkv = image.attn.qkv(modulate(h, shift_a, scale_a))
        side = modulate(text, of_text[0], of_text[1])
        B, T, D = h.shape
        if continues:
            q, k, v = self._heads(torch.cat([_of(rows, context.attn.qkv(side)), qkv], dim=1), 3)
        else:
            own, others = qkv.split([D, 2 * D], dim=-1)
            (q,) = self._heads(own, 1)
            k, v = self._heads(torch.cat([_of(rows, context.attn.keys_values(side)), others], dim=1), 2)
        if turns is not None:
            q, k = rotate(q, turns[..., -q.shape[2] :, :]), rotate(k, turns)
        if mask is not None:
            # One row for all queries, or one for each.
            mask = mask[:, :, -q.shape[2] :]
        mixed = attention(q, k, v, mask, fused=self.fused).transpose(1, 2).reshape(B, -1, D)
        h = h + gate_a * image.attn.proj(mixed[:, -T:])
        h = h + gate_m * image.mlp(modulate(h, shift_m, scale_m))
        compared = q[:, :, -T:], k[:, :, -T:]
        if not continues:
            return None, h, compared
        _, _, gate_a, shift_m, scale_m, gate_m = of_text
        text = _of(rows, text) + gate_a * context.attn.proj(mixed[:, :-T])
        return text + gate_m * context.mlp(modulate(text, shift_m, scale_m)), h, compared

    def _heads(self, values: Tensor, kinds: int) -> Tensor:
        """Return `kinds` tensors (B, N, S, C) of values (B, S, kinds D)."""
        B, S, width = values.shape
        shape = B, S, kinds, self.heads, width // (kinds * self.heads)
        return values.reshape(shape).permute(2, 0, 3, 1, 4)


class Stream(nn.Module):
    """The weights of one stream of a block; those of a `pre_only` one end with its keys and values."""

    def __init__(self, width: int, *, pre_only: bool) -> None:
        super().__init__()
        self.pre_only = pre_only
        self.attn = Projections(width, pre_only=pre_only)
        if not pre_only:
            self.mlp = Mlp(width, 4 * width)
        # SiLU is applied to the condition once, so each block has an identity in its place.
        self.adaLN_modulation = nn.Sequential(nn.Identity(), nn.Linear(width, (2 if pre_only else 6) * width))

    def modulation(self, c_BKD: Tensor) -> list[Tensor]:
        """Return shift, 1 + scale and gate of the attention, then of the MLP; a `pre_only` stream has the
        first two."""
        shift, scale, *others = self.adaLN_modulation(c_BKD).chunk(2 if self.pre_only else 6, dim=-1)
        if not others:
            return [shift, 1 + scale]
        gate, shift_m, scale_m, gate_m = others
        return [shift, 1 + scale, gate, shift_m, 1 + scale_m, gate_m]


class Projections(nn.Module):
    """The linear layers of an attention."""

    def __init__(self, width: int, *, pre_only: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        if not pre_only:
            self.proj = nn.Linear(width, width)

    def keys_values(self, h: Tensor) -> Tensor:
        """Return keys and values, (B, L, 2 D), without the queries."""
        width = h.shape[-1]
        return F.linear(h, self.qkv.weight[width:], self.qkv.bias[width:])


def attention_mask(text: Tensor | None, groups: Tensor | None, lengths: tuple[int, int]) -> Tensor | None:
    """Return where queries attend to keys, bool (B, 1, S, S), or (B, 1, 1, S) without groups; None for all.

    `text` (B, L) is true for text tokens that are attended to. `groups` (B, T) are those of image tokens, and
    negative for tokens of missing parts.
    """
    L, T = lengths
    if groups is None:
        return None if text is None else F.pad(text, (0, T), value=True)[:, None, None]
    if text is None:
        text = groups.new_ones(len(groups), L, dtype=torch.bool)
    present = groups >= 0
    is_one_group = ((groups == groups.amax(dim=1, keepdim=True)) | ~present).all(dim=1, keepdim=True)
    of_text = torch.cat([text, present & is_one_group], dim=1)[:, None].expand(-1, L, -1)
    of_image = torch.cat([text[:, None].expand(-1, T, -1), groups[:, :, None] == groups[:, None]], dim=2)
    return torch.cat([of_text, of_image], dim=1)[:, None]


def _of(rows: Tensor | None, values: Tensor) -> Tensor:
    return values if rows is None else values[rows]


def _unturned(turns: Tensor, length: int) -> Tensor:
    """Return rotations by zero for text tokens, which have no position."""
    cos = turns.new_ones(length, turns.shape[2])
    return torch.stack([cos, torch.zeros_like(cos)])
