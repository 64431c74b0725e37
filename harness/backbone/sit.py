"""SiT, the Scalable Interpolant Transformer (Ma et al., arXiv 2401.08740, models.py), with times per token.

The network is the released one: adaLN-Zero blocks, frozen sin-cos positions, label and timestep embeddings,
parameter names included. Two things are ours: attention is fused, and modulation is computed once per noise
level (see times.py). Rotary positions are an option.

    B  samples    K  levels    T  tokens    D  width    N  heads    C  channels    E  extra channels
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harness.backbone.attention import Attention
from harness.backbone.embed import ExtraEmbed, LabelEmbedder, PatchEmbed, TimestepEmbedder
from harness.backbone.rotary import rotation
from harness.backbone.sizes import Size
from harness.backbone.times import Times
from harness.backbone.tokens import Part, positions, split_parts, unpatchify


@dataclass(frozen=True)
class SiTConfig:
    """Everything that fixes the shape of a SiT."""

    size: Size
    patch: int
    shape: tuple[int, ...]
    """(channels, *axes) of x: an image (C, H, W), a video (C, F, H, W) or audio (C, L)."""
    classes: int
    """The label table has one row more: the null label, which is `classes`."""
    learn_sigma: bool = False
    """Twice the output channels, the second half unused (as the released SiT has it)."""
    extra: int = 0
    """Channels of one more token, which is generated beside the image (REG); 0 for none."""
    patch_time: int = 1
    """Frames of a video in one token."""
    beside: tuple[Part, ...] = ()
    """What shares the sequence with a video: its sound. Then x is a vector, the video first."""
    positions: Literal["sincos", "rotary"] = "sincos"
    """Added to the tokens, as released, or turning queries and keys in every block (rotary.py)."""

    def __post_init__(self) -> None:
        kind = self.parts[0].kind  # raises ValueError where a patch does not divide
        if self.beside and kind != "video":
            raise ValueError(f"only a video has other parts beside it, not {kind}")

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """What a sample is made of."""
        square = (self.patch,) * min(2, len(self.shape) - 1)
        return Part(self.shape, (self.patch_time, *square) if len(self.shape) == 4 else square), *self.beside

    @property
    def grid(self) -> tuple[int, ...]:
        """Of the first part's tokens."""
        return self.parts[0].grid

    @property
    def tokens(self) -> int:
        return sum(part.tokens for part in self.parts)

    def of_tokens(self, values_BP: Tensor) -> Tensor:
        """A value for each part -> for each token, (B, T)."""
        each = zip(values_BP.split(1, dim=1), self.parts, strict=True)
        return torch.cat([values.expand(-1, part.tokens) for values, part in each], dim=1)

    @property
    def part_of_token(self) -> Tensor:
        """(T,) int64, the number of the part that a token belongs to."""
        return torch.repeat_interleave(torch.tensor([part.tokens for part in self.parts]))

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Of x without its batch: that of the one part, or (N,) for several, flattened one behind the
        other."""
        return (sum(part.values for part in self.parts),) if self.beside else self.shape

    def split_parts(self, x: Tensor) -> list[Tensor]:
        """x (B, *x_shape) as its parts, each (B, C, *axes)."""
        return split_parts(x, [part.shape for part in self.parts])

    def spread(self, values_BT: Tensor) -> Tensor:
        """A value for each token, (B, T) or (B, 1) -> for each number of x, to broadcast against (B,
        *x_shape)."""
        if not self.beside:
            return self.parts[0].spread(values_BT)
        if values_BT.shape[1] == 1:
            return values_BT
        each = values_BT.split([part.tokens for part in self.parts], dim=1)
        whole = [
            part.spread(values).expand(-1, *part.shape).flatten(1)
            for values, part in zip(each, self.parts, strict=True)
        ]
        return torch.cat(whole, dim=1)


class Prediction(NamedTuple):
    velocity: Tensor
    """Shaped like x; missing (None) after a pass that `stop_after` ended, whose caller reads `hidden`
    alone."""
    hidden: dict[int, Tensor]
    """Layer n -> (B, T, D), the output of block n (1-based), for the layers that were tapped; with an extra
    token, it comes first: (B, 1 + T, D)."""
    extra: Tensor | None = None
    """(B, E), the velocity of the extra token."""
    heads: Mapping[int, tuple[Tensor, Tensor]] = MappingProxyType({})
    """Layer n -> queries and keys of block n as attention compares them, each (B, N, T, D / N), for the
    layers that were asked."""


class SiT(nn.Module):
    """Velocity of the linear path: v(x, tau, y), with t = 1 noise and target eps - x0."""

    checkpoint_activations = False
    """Compute what happens inside a block again in the backward pass, instead of keeping it."""

    pos_embed: Tensor
    rotation: Tensor

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        self.config = config
        depth, width, heads = config.size
        first, *beside = config.parts
        self.x_embedder = PatchEmbed(first, width)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(config.classes, width)
        if config.positions == "sincos":
            self.register_buffer("pos_embed", positions(width, config.parts))
        else:
            turns = rotation(width // heads, config.parts, extra=bool(config.extra))
            self.register_buffer("rotation", turns, persistent=False)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        outputs = [part.token_values * (2 if config.learn_sigma else 1) for part in config.parts]
        self.final_layer = FinalLayer(width, outputs, config.extra)
        self.beside_embedders = nn.ModuleList(PatchEmbed(part, width) for part in beside)
        if config.extra:
            self.extra_embedder = ExtraEmbed(config.extra, width)

    def forward(
        self,
        x: Tensor,
        times: Times,
        y: Tensor,
        *,
        taps: Collection[int] = (),
        stop_after: int | None = None,
        groups: Tensor | None = None,
        extra: Tensor | None = None,
        heads: Collection[int] = (),
    ) -> Prediction:
        """One pass.

        x: (B, *x_shape); times: K levels per sample; y: (B,) labels, `classes` for none. `taps` names the
        layers whose output is returned; `stop_after` ends the pass behind that layer; `groups` (B, T) lets a
        token attend only to tokens of its own group. `extra` (B, E) is the extra token, at the sample's one
        level and without position; None leaves it out. `heads` names the layers whose queries and keys are
        returned.
        """
        c_BKD = self.t_embedder(times.levels) + self.y_embedder(y)[:, None]
        c_BKD = F.silu(c_BKD)
        mask = None if groups is None else (groups[:, None, :, None] == groups[:, None, None, :])
        h, turns = self._embedded(x), None
        if self.config.positions == "sincos":
            h = h + self.pos_embed
        if extra is not None:
            h = torch.cat([self.extra_embedder(extra)[:, None], h], dim=1)
        if self.config.positions == "rotary":
            turns = self.rotation[:, -h.shape[1] :]  # the first is the extra token's
        hidden, heard = {}, {}
        for layer, block in enumerate(self.blocks, start=1):
            h, queries_keys = self._through(block, h, c_BKD, times, mask, turns)
            if layer in taps:
                hidden[layer] = h
            if layer in heads:
                heard[layer] = queries_keys
            if layer == stop_after:
                # Only the teacher stops early, and it reads no velocity: every other caller has one.
                return Prediction(cast(Tensor, None), hidden, heads=heard)
        counts = [part.tokens for part in self.config.parts]
        out, extra = self.final_layer(h, c_BKD, times, extra is not None, counts)
        return Prediction(self._assembled(out), hidden, extra, heard)

    def _through(self, block: nn.Module, *given: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        if self.checkpoint_activations and torch.is_grad_enabled():
            # Nothing random happens in a block, so no generator's state need be kept.
            return checkpoint(block, *given, use_reentrant=False, preserve_rng_state=False)
        return block(*given)

    def _embedded(self, x: Tensor) -> Tensor:
        """Tokens of all parts, (B, T, D)."""
        embedders = [self.x_embedder, *self.beside_embedders]
        tokens = [embed(part) for embed, part in zip(embedders, self.config.split_parts(x), strict=True)]
        return torch.cat(tokens, dim=1) if len(tokens) > 1 else tokens[0]

    def _assembled(self, patches: list[Tensor]) -> Tensor:
        """Patches of every part, each (B, T, outputs) -> x, without the channels of sigma."""
        whole = [
            unpatchify(values, part.patch, part.axes)[:, : part.shape[0]]
            for values, part in zip(patches, self.config.parts, strict=True)
        ]
        return torch.cat([one.flatten(1) for one in whole], dim=1) if len(whole) > 1 else whole[0]


class Block(nn.Module):
    """adaLN-Zero transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = Mlp(width, 4 * width)
        self.adaLN_modulation = nn.Sequential(
            nn.Identity(), nn.Linear(width, 6 * width)
        )  # SiLU: once, in forward

    def forward(
        self, h: Tensor, c_BKD: Tensor, times: Times, mask: Tensor | None, turns: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Tokens (B, T, D), and the queries and keys of the attention."""
        # Six selections, not one of six times the width: their gradients need not be put together again.
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c_BKD).chunk(6, dim=-1)
        six = (shift_a, 1 + scale_a, gate_a, shift_m, 1 + scale_m, gate_m)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = map(times.select, six)
        mixed, queries_keys = self.attn(modulate(h, shift_a, scale_a), mask, turns)
        h = h + gate_a * mixed
        return h + gate_m * self.mlp(modulate(h, shift_m, scale_m)), queries_keys


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, h: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(h)))


def gelu(x: Tensor) -> Tensor:
    """x (1 + tanh u) / 2 = x sigmoid(2u) with u = sqrt(2 / pi) (x + 0.044715 x^3).

    One kernel when eager; compiled, both are one, and on a CPU an exponential costs less than a hyperbolic
    tangent.
    """
    if not torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    return x * torch.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x**3))


class FinalLayer(nn.Module):
    def __init__(self, width: int, outputs: Sequence[int], extra: int) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.Identity(), nn.Linear(width, 2 * width))
        self.linear, *beside = (nn.Linear(width, values) for values in outputs)
        self.linear_beside = nn.ModuleList(beside)
        if extra:
            self.linear_extra = nn.Linear(width, extra)

    def forward(
        self, h: Tensor, c_BKD: Tensor, times: Times, has_extra: bool, tokens: Sequence[int]
    ) -> tuple[list[Tensor], Tensor | None]:
        """Patches of the velocity of every part, (B, T, outputs) each, and the extra token's velocity (B, E)
        where there is one; `tokens` of each part."""
        shift, scale = self.adaLN_modulation(c_BKD).chunk(2, dim=-1)
        h = modulate(h, times.select(shift), times.select(1 + scale))
        extra = None
        if has_extra:
            h, extra = h[:, 1:], self.linear_extra(h[:, 0])
        if not self.linear_beside:
            return [self.linear(h)], extra
        linears = (self.linear, *self.linear_beside)
        return [f(part) for f, part in zip(linears, h.split(tokens, dim=1), strict=True)], extra


def modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without parameters, then scale and shift; h: (B, T, D), the others (B, T or 1, D).

    The scale has its one already: it is added to rows of levels, not to rows of tokens.
    """
    return F.layer_norm(h, h.shape[-1:], eps=1e-6) * scale + shift
