"""Network inputs: the part of a sample that a network of images or of clips reads, in its layout.

image   (B, C, H, W)       unchanged         audio  (B, C, L)   as an image of one channel, (B, 1, C, L): its
spectrogram video   (B, C, F, H, W)    as clips (B, F, C, H, W) joint   (B, N)             its video or its
sound, whichever the network reads
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from harness.backbone.tokens import split_parts


def network_inputs(x: Tensor, shapes: Sequence[tuple[int, ...]], kind: str) -> Tensor:
    """Return what a network of `kind` (`image` or `video`) reads of samples (B, ...) of parts with these
    shapes."""
    for part, shape in zip(split_parts(x, shapes), shapes, strict=True):
        if kind == "video" and len(shape) == 4:
            return part.transpose(1, 2)
        if kind == "image" and len(shape) < 4:
            return part[:, None] if len(shape) == 2 else part
    raise ValueError(f"no part of {list(shapes)} is {kind}")
