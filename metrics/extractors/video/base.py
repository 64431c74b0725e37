"""The video extractor: a frozen network over clips, with the attributes of an image extractor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from metrics.extractors.base import check_bytes, exact_float32, with_channels
from metrics.value import MetricError


@dataclass(frozen=True)
class VideoExtractor:
    """A function from clips uint8 (B, T, C, H, W) to features float32 (B, dim) on `device`.

    It computes in plain float32. Grey clips are repeated to 3 channels for a network that takes 3. Raises
    `MetricError` for clips of another type or shape, and for a number of frames below `least` or, if the
    network fixes it, other than `frames`.
    """

    name: str
    dim: int
    sha256: str
    preprocessing: str
    channels: int
    device: torch.device
    network: Callable[[Tensor], Tensor]
    """Function from uint8 (B, T, channels, H, W) on `device` to features (B, dim)."""
    frames: int | None = None
    """Number of frames of a clip; None if the network takes any number from `least`."""
    least: int = 1
    """Smallest number of frames of a clip."""
    accuracy: float | None = None
    """Accuracy on held-out data, for a classifier trained on this data set."""

    modality: ClassVar[str] = "video"
    output: ClassVar[str] = "features"
    beside: ClassVar[Mapping[str, int]] = {}

    def outputs(self, clips: Tensor) -> dict[str, Tensor]:
        """Return the features by name, as an image extractor does."""
        return {self.output: self(clips)}

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Tensor:
        check_clips(clips)
        count = clips.shape[1]
        if count < self.least or (self.frames and count != self.frames):
            takes = f"{self.frames}" if self.frames else f"{self.least} or more"
            raise MetricError(f"extractor '{self.name}' takes clips of {takes} frames; these have {count}")
        clips = with_channels(clips.to(self.device), self.channels, "clips", self.name)
        with exact_float32(self.device):
            return self.network(clips).float()


# Any: whatever the caller gives.
def check_clips(clips: Any) -> None:
    """Raise `MetricError` unless clips are a non-empty uint8 tensor (B, T, 1 or 3, H, W)."""
    check_bytes(clips, "clips", "B, T, C, H, W")
