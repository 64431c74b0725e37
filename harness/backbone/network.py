"""The base of both networks: a pass and its outputs, tokens, positions and final layers.

B  samples    K  levels    T  tokens    D  width    N  heads    C  channels    E  extra channels
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harness.backbone.condition import Condition
from harness.backbone.config import BackboneConfig
from harness.backbone.embed import ExtraEmbed, PatchEmbed, TimestepEmbedder
from harness.backbone.layers import FinalLayer
from harness.backbone.prediction import velocity_of_clean
from harness.backbone.rotary import rotation
from harness.backbone.routing import Fusion, Passage, Route, Surroundings
from harness.backbone.times import Times
from harness.backbone.tokens import positions, unpatchify

__all__ = ["Backbone", "BackboneConfig", "Prediction"]


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
