"""The configuration of a network: its size, and the parts and tokens of a sample.

B  samples    P  parts    T  tokens    C  channels
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from harness.backbone.condition import Condition
from harness.backbone.prediction import PredictionKind
from harness.backbone.sizes import Size
from harness.backbone.tokens import Part, split_parts


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
    given_noise: float = 0.0
    """The largest time of the given tokens of the first part in training; 0 for clean ones."""
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
