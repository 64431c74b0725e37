"""The backbone of a spec: size, tokens, position code and initial weights of the network."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from harness.backbone.sizes import size_named
from harness.config.parts import FLAT_NAMES, HasParts
from harness.config.section import HASHED_IF_SET, SIDE, Section


class BackbonePart(Section):
    """Division of one part of a sample into tokens."""

    patch: int = Field(default=1, ge=1, le=SIDE, json_schema_extra=HASHED_IF_SET)
    """Spectrogram frames in one token of the sound of a video."""


class BackboneParts(Section):
    """The parts of a sample after the first; `patch` and `patch_time` of the backbone divide the first."""

    audio: BackbonePart = BackbonePart()

    def of(self, kind: str) -> BackbonePart:
        """Return the settings of a kind of part."""
        return dict(self).get(kind, BackbonePart())


class BackboneSpec(Section, HasParts):
    """The network."""

    flat_names: ClassVar = FLAT_NAMES["backbone"]

    kind: Literal["sit", "mmdit"] = Field(default="sit", json_schema_extra=HASHED_IF_SET)
    """`sit` is conditioned on class labels, `mmdit` on text."""
    size: str = "S"
    """Registered size, see `flowrace list sizes`, or DEPTHxWIDTHxHEADS such as 6x64x4."""
    patch: int = Field(default=2, ge=1, le=SIDE)
    """Side of a token in pixels, or its length in spectrogram frames for sound."""
    bottleneck: int = Field(default=0, ge=0, le=SIDE, json_schema_extra=HASHED_IF_SET)
    """Channels between two linear layers that embed a patch, as in JiT (128 for B and L, 256 for H); 0 for
    one layer."""
    patch_time: int = Field(default=1, ge=1, le=SIDE, json_schema_extra=HASHED_IF_SET)
    """Frames of a video in one token."""
    parts: BackboneParts = BackboneParts()
    """Settings of the parts of a sample after the first."""
    learn_sigma: bool = False
    """Add the variance channels of the released networks; they are not trained."""
    positions: Literal["sincos", "rotary"] = Field(default="sincos", json_schema_extra=HASHED_IF_SET)
    """Position code added to the tokens, as released, or rotation of queries and keys in every block."""
    initial: Literal["zero", "released"] = Field(default="zero", json_schema_extra=HASHED_IF_SET)
    """Initial weights: modulation and output zero as in SiT, or PyTorch's defaults as in REPA's MMDiT."""
    text_time: Literal["mean", "min", "clean"] = Field(default="mean", json_schema_extra=HASHED_IF_SET)
    """Time of the text tokens if image tokens have different times: the mean of their embeddings, or the
    smallest. With `clean` it is always 0."""

    @property
    def depth(self) -> int:
        """Number of blocks."""
        size = size_named(self.size)
        if size is None:
            raise ValueError(f"backbone.size = {self.size} is unknown")
        return size.depth
