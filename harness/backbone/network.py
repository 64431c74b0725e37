"""Modules that both networks share: configuration, prediction, tokens, positions, final layer, MLP.

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

from harness.backbone.condition import Condition
from harness.backbone.embed import ExtraEmbed, PatchEmbed, TimestepEmbedder
from harness.backbone.prediction import PredictionKind, velocity_of_clean
from harness.backbone.rotary import rotation
from harness.backbone.routing import Fusion, Passage, Route, Surroundings
from harness.backbone.sizes import Size
from harness.backbone.times import Times
from harness.backbone.tokens import Part, positions, split_parts, unpatchify


@dataclass(frozen=True)
class BackboneConfig:
    """Everything that determines the shape of a network."""

    size: Size
    patch: int
    shape: tuple[int, ...]
    """(channels, *axes) of x: an image (C, H, W), a video (C, F, H, W) or audio (C, L)."""
    classes: int
    """Number of classes of the data."""
    learn_sigma: bool = False
    """Twice the output channels, of which the second half is unused, as in the released SiT."""
    extra: int = 0
    """Channels of an extra token, which is generated together with the image (REG); 0 for none."""
    patch_time: int = 1
    """Frames of a video in one token."""
    beside: tuple[Part, ...] = ()
    """Other parts in the sequence of a video, for example its sound, or the state and the actions of a robot.
    Then x is a vector, with the video first. Actions may also follow a state alone."""
    positions: Literal["sincos", "rotary"] = "sincos"
    """Added to the tokens, as released, or rotating queries and keys in every block (rotary.py)."""
    outputs: tuple[int, ...] = ()
    """Layers (1-based) that have a further final layer, which predicts a velocity from their output."""
    fused: tuple[int, ...] = ()
    """First and last block (1-based) whose output a linear layer joins with the tokens before them
    (routing.py); () for none."""
    bottleneck: int = 0
    """Channels between the two linear layers that embed a patch of the first part; 0 for one layer."""
    prediction: PredictionKind = "velocity"
    """The output of the final layers. From `x`, a clean sample, the velocity is computed (prediction.py)."""
    given: tuple[int, ...] = ()
    """Number of first tokens of each part that are given instead of generated; () for none. Their time is 0
    and their velocity is 0, whatever the sample's times are."""
    features: int = 0
    """Further channels of the network's input and velocity, which are generated together with the sample
    (ReDi); 0 for none."""

    def __post_init__(self) -> None:
        # Building the parts raises ValueError if a patch does not divide an axis.
        first = self.parts[0]
        if self.beside and len(first.axes) == 2:
            raise ValueError(f"only a video or a state has other parts, but the first part is {first.kind}")
        if self.beside and len(first.axes) == 1 and self.positions == "rotary":
            raise ValueError("positions = rotary: parts that follow a state have no place; use sincos")
        if self.outputs and self.extra:
            raise ValueError("a network with an extra token has no further final layers")
        if self.features:
            self._check_features()
        if beyond := [layer for layer in self.outputs if not 1 <= layer < self.size.depth]:
            raise ValueError(
                f"a further final layer is at layers 1 to {self.size.depth - 1}, but got layer {beyond[0]}"
            )
        if self.fused and self.extra:
            raise ValueError("a network with an extra token has no fusion of blocks")
        if self.fused and not 1 <= self.fused[0] <= self.fused[-1] <= self.size.depth:
            raise ValueError(f"blocks {self.fused} cannot be fused; give a first and a last one, in order")
        if self.given:
            self._check_given()

    def _check_features(self) -> None:
        """Raise ValueError for what a network with further channels cannot have."""
        if self.extra or self.outputs or self.beside or self.fused or self.given:
            raise ValueError(
                "a network with further channels has no extra token, further final layer, fusion, given "
                "token or further part"
            )
        if self.prediction == "x":
            raise ValueError("a network with further channels predicts the velocity, not x")

    def _check_given(self) -> None:
        """Raise ValueError unless every part has its given tokens, and some token is generated."""
        if self.extra:
            raise ValueError("a network with an extra token has one time for all tokens, so none is given")
        tokens = [part.tokens for part in self.parts]
        fits = len(self.given) == len(tokens) and all(map(int.__le__, self.given, tokens))
        if not fits or sum(self.given) == sum(tokens):
            raise ValueError(
                f"given = {self.given}: the parts have {tokens} tokens, of which at least one is generated"
            )

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The parts of a sample."""
        square = (self.patch,) * min(2, len(self.shape) - 1)
        patch = (self.patch_time, *square) if len(self.shape) == 4 else square
        return Part((self.shape[0] + self.features, *self.shape[1:]), patch), *self.beside

    @property
    def grid(self) -> tuple[int, ...]:
        """The token grid of the first part."""
        return self.parts[0].grid

    @property
    def tokens(self) -> int:
        return sum(part.tokens for part in self.parts)

    def of_tokens(self, values_BP: Tensor) -> Tensor:
        """Return values per token, (B, T), from values per part, (B, P)."""
        each = zip(values_BP.split(1, dim=1), self.parts, strict=True)
        return torch.cat([values.expand(-1, part.tokens) for values, part in each], dim=1)

    @property
    def part_of_token(self) -> Tensor:
        """(T,) int64, the index of each token's part."""
        return torch.repeat_interleave(torch.tensor([part.tokens for part in self.parts]))

    @property
    def x_shape(self) -> tuple[int, ...]:
        """The shape of a sample without its batch axis; (N,) for several parts, which are flattened and
        concatenated."""
        return (sum(part.values for part in self.parts),) if self.beside else self.shape

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of the network's input: a sample with its further channels, if it has some."""
        return self.parts[0].shape if self.features else self.x_shape

    def split_parts(self, x: Tensor) -> list[Tensor]:
        """Return the parts of x (B, *x_shape), each (B, C, *axes)."""
        return split_parts(x, [part.shape for part in self.parts])

    def spread(self, values_BT: Tensor) -> Tensor:
        """Return values per token, (B, T) or (B, 1), expanded to broadcast against x (B, *x_shape)."""
        if not self.beside:
            return self.parts[0].spread(values_BT)
        if values_BT.shape[1] == 1:
            return values_BT
        each = values_BT.split([part.tokens for part in self.parts], dim=1)
        expanded = [
            part.spread(values).expand(-1, *part.shape).flatten(1)
            for values, part in zip(each, self.parts, strict=True)
        ]
        return torch.cat(expanded, dim=1)

    @property
    def given_tokens(self) -> Tensor | None:
        """The mask of given tokens, (T,) bool; None without any."""
        return self._given_tokens

    @cached_property
    def _given_tokens(self) -> Tensor | None:
        if not any(self.given):
            return None
        each = zip(self.given, self.parts, strict=True)
        return torch.cat([torch.arange(part.tokens, device="cpu") < given for given, part in each])

    @cached_property
    def generated_values(self) -> Tensor | None:
        """The mask of generated values, bool of shape `x_shape`; None if no token is given."""
        if self.given_tokens is None:
            return None
        return self.spread(~self.given_tokens[None])[0].expand(self.x_shape)

    def blank_condition(self, size: int) -> Condition:
        """Return a condition for `size` samples with the shapes that training has, for counting costs."""
        raise NotImplementedError(f"{type(self).__name__} has no condition")


class Prediction(NamedTuple):
    """The outputs of a pass."""

    velocity: Tensor
    """Shaped like x. None after a pass that `stop_after` ended, whose caller only reads `hidden`."""
    hidden: dict[int, Tensor]
    """Layer n -> (B, T, D), the output of block n (1-based), for tapped layers. An extra token comes first:
    (B, 1 + T, D)."""
    extra: Tensor | None = None
    """(B, E), the velocity of the extra token."""
    heads: Mapping[int, tuple[Tensor, Tensor]] = MappingProxyType({})
    """Layer n -> queries and keys of block n as attention compares them, each (B, N, T, D / N), for requested
    layers."""
    outputs: Mapping[int, Tensor] = MappingProxyType({})
    """Layer n -> the velocity, shaped like x, of the further final layer at block n, for requested layers."""


class Backbone(nn.Module):
    """The velocity v(x, tau, y) of the linear path, where t = 1 is noise and the target is eps - x0.

    A network has modules of these names, and calls the builders in the order of its released weights.
    """

    checkpoint_activations = False
    """Recompute the activations inside a block in the backward pass, instead of storing them."""

    config: BackboneConfig
    blocks: nn.ModuleList
    pos_embed: Tensor
    rotation: Tensor
    given_tokens: Tensor | None
    generated_values: Tensor | None

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("given_tokens", config.given_tokens, persistent=False)
        self.register_buffer("generated_values", config.generated_values, persistent=False)

    def forward(
        self,
        x: Tensor,
        times: Times,
        y: Condition,
        *,
        taps: Collection[int] = (),
        stop_after: int | None = None,
        groups: Tensor | None = None,
        extra: Tensor | None = None,
        heads: Collection[int] = (),
        outputs: Collection[int] = (),
        route: Route | None = None,
    ) -> Prediction:
        """Predict the velocity of x (B, *x_shape) at K times per sample, for conditions y of B samples.

        `taps` lists the layers whose output is returned, and `heads` those whose queries and keys are
        returned. `outputs` lists those of `config.outputs` whose velocity is predicted too. `stop_after` ends
        the pass after that layer. With `groups` (B, T), tokens attend only within their group. `extra` (B, E)
        is the extra token, which has the sample's single level and no position; None leaves it out.

        Given tokens (`config.given`) have time 0 and velocity 0; x has their clean values.

        With `route`, some tokens skip some blocks. In the output of a block that they skip, they have the
        values with which they entered the route. Queries and keys of such a block are those of the other
        tokens only. If `config.fused`, the output of its last block is that before the fusion, and a route
        has the same blocks.
        """
        raise NotImplementedError

    def _build_embedders(self) -> None:
        """Add the embedders of the first part and of times."""
        width = self.config.size.width
        self.x_embedder = PatchEmbed(self.config.parts[0], width, self.config.bottleneck)
        self.t_embedder = TimestepEmbedder(width)

    def _build_positions(self) -> None:
        """Add the position code of all tokens, or their rotation."""
        config, (_, width, heads) = self.config, self.config.size
        if config.positions == "sincos":
            self.register_buffer("pos_embed", positions(width, config.parts))
        else:
            turns = rotation(width // heads, config.parts, extra=bool(config.extra))
            self.register_buffer("rotation", turns, persistent=False)

    def _build_outputs(self) -> None:
        """Add the final layer, and the embedders of further parts and of the extra token."""
        config, width = self.config, self.config.size.width
        outputs = [part.token_values * (2 if config.learn_sigma else 1) for part in config.parts]
        self.final_layer = FinalLayer(width, outputs, config.extra)
        if config.outputs:
            self.final_layers = nn.ModuleDict({str(n): FinalLayer(width, outputs, 0) for n in config.outputs})
        if config.fused:
            # The name has the last block, so that its place is known from it.
            self.fusions = nn.ModuleDict({str(config.fused[1]): Fusion(width)})
        self.beside_embedders = nn.ModuleList(PatchEmbed(part, width) for part in config.parts[1:])
        if config.extra:
            self.extra_embedder = ExtraEmbed(config.extra, width)

    def _tokens(self, x: Tensor, extra: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the tokens of all parts after the extra token, (B, T, D), and their rotation, if any."""
        h = self._embedded(x)
        if self.config.positions == "sincos":
            h = h + self.pos_embed
        if extra is not None:
            h = torch.cat([self.extra_embedder(extra)[:, None], h], dim=1)
        # The first rotation is that of the extra token, which may be absent.
        return h, self.rotation[:, -h.shape[1] :] if self.config.positions == "rotary" else None

    def _velocity(
        self, x: Tensor, h: Tensor, c_BKD: Tensor, times: Times, has_extra: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the velocity of x and of the extra token, from the last block's output.

        That of the extra token is always predicted as such.
        """
        counts = [part.tokens for part in self.config.parts]
        out, extra = self.final_layer(h, c_BKD, times, has_extra, counts)
        return self._as_velocity(self._assembled(out), x, times), extra

    def _velocity_at(self, layer: int, x: Tensor, h: Tensor, c_BKD: Tensor, times: Times) -> Tensor:
        """Return the velocity of x from the output of a layer with a further final layer."""
        if layer not in self.config.outputs:
            raise ValueError(f"layer {layer} has no further final layer; it needs BackboneConfig.outputs")
        counts = [part.tokens for part in self.config.parts]
        out, _ = self.final_layers[str(layer)](h, c_BKD, times, False, counts)
        return self._as_velocity(self._assembled(out), x, times)

    def _as_velocity(self, output: Tensor, x: Tensor, times: Times) -> Tensor:
        """Return the velocity of x from the output of a final layer; that of given values is 0."""
        if self.config.prediction == "x":
            output = velocity_of_clean(output, x, times, self.config)
        return output if self.generated_values is None else torch.where(self.generated_values, output, 0)

    def _passage(self, full: Surroundings, route: Route | None, ahead: int = 0) -> Passage:
        """Return the way of the tokens through the blocks, see `Passage`."""
        fused = self.config.fused
        fusion = cast(Fusion, self.fusions[str(fused[1])]) if fused else None
        return Passage(full, route, fusion, fused, ahead)

    def _with_given(self, times: Times) -> Times:
        """Return times in which given tokens have time 0."""
        return times if self.given_tokens is None else times.with_given(self.given_tokens)

    # Any: the arguments and the outputs of a block.
    def _run_block(self, block: nn.Module, *args: Any) -> Any:
        if self.checkpoint_activations and torch.is_grad_enabled():
            # A block draws no random numbers, so no generator state has to be stored.
            return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False)
        return block(*args)

    def _embedded(self, x: Tensor) -> Tensor:
        """Return the tokens of all parts, (B, T, D)."""
        embedders = [self.x_embedder, *self.beside_embedders]
        tokens = [embed(part) for embed, part in zip(embedders, self.config.split_parts(x), strict=True)]
        return torch.cat(tokens, dim=1) if len(tokens) > 1 else tokens[0]

    def _assembled(self, patches: list[Tensor]) -> Tensor:
        """Return x from the patches of every part, each (B, T, outputs), without the channels of sigma."""
        parts = [
            unpatchify(values, part.patch, part.axes)[:, : part.shape[0]]
            for values, part in zip(patches, self.config.parts, strict=True)
        ]
        return torch.cat([part.flatten(1) for part in parts], dim=1) if len(parts) > 1 else parts[0]


class Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, h: Tensor) -> Tensor:
        """Return tokens (B, T, D)."""
        return self.fc2(gelu(self.fc1(h)))


def gelu(x: Tensor) -> Tensor:
    """Return x (1 + tanh u) / 2 = x sigmoid(2u) with u = sqrt(2 / pi) (x + 0.044715 x^3).

    PyTorch's function is one kernel in eager mode. Compiled, both forms are, and on a CPU an exponential
    costs less than a hyperbolic tangent.
    """
    if not torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    return x * torch.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x**3))


class FinalLayer(nn.Module):
    """Modulated layer norm, then a linear layer for each part and for the extra token."""

    def __init__(self, width: int, outputs: Sequence[int], extra: int) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.Identity(), nn.Linear(width, 2 * width))
        self.linear, *others = (nn.Linear(width, values) for values in outputs)
        self.linear_beside = nn.ModuleList(others)
        if extra:
            self.linear_extra = nn.Linear(width, extra)

    def forward(
        self, h: Tensor, c_BKD: Tensor, times: Times, has_extra: bool, tokens: Sequence[int]
    ) -> tuple[list[Tensor], Tensor | None]:
        """Return the velocity of every part's patches, (B, T, outputs), and of the extra token, (B, E).

        `tokens` holds the number of tokens per part. Without an extra token, its velocity is None.
        """
        shift, scale = self.adaLN_modulation(c_BKD).chunk(2, dim=-1)
        h = modulate(h, times.select(shift), times.select(1 + scale))
        extra = None
        if has_extra:
            h, extra = h[:, 1:], self.linear_extra(h[:, 0])
        if not self.linear_beside:
            return [self.linear(h)], extra
        linears = (self.linear, *self.linear_beside)
        return [linear(part) for linear, part in zip(linears, h.split(tokens, dim=1), strict=True)], extra


def modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalise h (B, T, D) by layer norm without parameters, then scale and shift, both (B, T or 1, D).

    `scale` includes the 1 of SiT's (1 + scale), which the caller adds per level instead of per token.
    """
    return F.layer_norm(h, h.shape[-1:], eps=1e-6) * scale + shift
