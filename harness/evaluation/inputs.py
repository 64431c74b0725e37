"""Network inputs: the part of a sample that an extractor of images or of clips takes, in its layout.

image   (B, C, H, W)       unchanged
audio   (B, C, L)          the spectrogram as an image of one channel, (B, 1, C, L)
video   (B, C, F, H, W)    as clips, (B, F, C, H, W)
joint   (B, N)             its video or its sound, whichever the extractor takes
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from harness.backbone.tokens import split_parts


def network_inputs(x: Tensor, shapes: Sequence[tuple[int, ...]], kind: str) -> Tensor:
    """Return the input of a network of `kind` (`image` or `video`) for samples (B, ...).

    `shapes` are those of the samples' parts.
    """
    for part, shape in zip(split_parts(x, shapes), shapes, strict=True):
        if kind == "video" and len(shape) == 4:
            return part.transpose(1, 2)
        if kind == "image" and len(shape) < 4:
            return part[:, None] if len(shape) == 2 else part
    raise ValueError(f"no part of {list(shapes)} is {kind}")
