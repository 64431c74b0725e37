"""What a network of images or of clips sees of a sample: its part of that kind, in the layout that such networks read.

image   (B, C, H, W)       as it is          audio  (B, C, L)   as an image of one channel, (B, 1, C, L): its spectrogram
video   (B, C, F, H, W)    as clips (B, F, C, H, W)
joint   (B, N)             its video or its sound, whichever the network reads
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from harness.backbone.tokens import split_parts
from harness.errors import UserError

READS = {"image": ("image",), "video": ("video",), "audio": ("image",), "joint": ("video", "image")}
"""Modality of data -> the kinds of network that can see it."""
HINTS = {
    "video": "video:local, or video:<extractor> of images",
    "audio": "local, or any extractor of images, which sees the spectrogram",
    "joint": "video:local for the video and local for the sound",
    "image": "local, or any extractor of images",
}


def check_seen(metric: str, extractor: str, reads: str, modality: str) -> None:
    """Raise `UserError` for a network that cannot see data of a modality."""
    if reads not in READS[modality]:
        drawn = {"joint": "videos with spectrograms", "video": "videos", "audio": "spectrograms"}
        measures = {"audio": "recordings"}.get(reads, reads)
        raise UserError(
            f"eval.metrics '{metric}': '{extractor}' measures {measures}, and a race here draws {drawn.get(modality, 'images')}; "
            f"name {HINTS[modality]}"
        )


def seen(x: Tensor, shapes: Sequence[tuple[int, ...]], reads: str) -> Tensor:
    """Samples (B, ...) of parts with these shapes, as a network that reads `image` or `video` sees them."""
    for part, shape in zip(split_parts(x, shapes), shapes, strict=True):
        if reads == "video" and len(shape) == 4:
            return part.transpose(1, 2)
        if reads == "image" and len(shape) < 4:
            return part[:, None] if len(shape) == 2 else part
    raise ValueError(f"no part of {list(shapes)} is {reads}")
