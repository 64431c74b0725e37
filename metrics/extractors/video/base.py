"""What a video extractor is: a frozen network over clips, named and described as those over images are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from metrics.extractors.base import exact_float32
from metrics.value import MetricError


@dataclass(frozen=True)
class VideoExtractor:
    """Clips uint8 (B, T, C, H, W) -> features float32 (B, dim), on `device`, in plain float32.

    Grey clips are repeated to 3 channels for a network that takes 3. Raises `MetricError` for clips of
    another type or shape, with fewer frames than `least`, or with another number of them than `frames` where
    the network fixes it.
    """

    name: str
    dim: int
    sha256: str
    preprocessing: str
    channels: int
    device: torch.device
    network: Callable[[Tensor], Tensor]
    """uint8 (B, T, channels, H, W) on `device` -> features (B, dim)."""
    frames: int | None = None
    """How many the network takes; None: any number from `least`."""
    least: int = 1
    accuracy: float | None = None

    modality: ClassVar[str] = "video"
    output: ClassVar[str] = "features"
    beside: ClassVar[Mapping[str, int]] = {}

    def outputs(self, clips: Tensor) -> dict[str, Tensor]:
        """The features by name, as an extractor over images gives them."""
        return {self.output: self(clips)}

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Tensor:
        check_clips(clips)
        count = clips.shape[1]
        if count < self.least or (self.frames and count != self.frames):
            takes = f"{self.frames}" if self.frames else f"{self.least} or more"
            raise MetricError(f"extractor '{self.name}' takes clips of {takes} frames; these have {count}")
        clips = clips.to(self.device)
        if clips.shape[2] == 1:
            clips = clips.expand(-1, -1, self.channels, -1, -1)
        if clips.shape[2] != self.channels:
            raise MetricError(
                f"extractor '{self.name}' takes clips of {self.channels} channels; these have {clips.shape[2]}"
            )
        with exact_float32(self.device):
            return self.network(clips).float()


def check_clips(clips: Any) -> None:
    """Raise `MetricError` unless clips are a uint8 tensor (B, T, 1 or 3, H, W) that is not empty."""
    if not isinstance(clips, Tensor):
        raise MetricError(f"clips are a {type(clips).__name__}; expected a uint8 tensor (B, T, C, H, W)")
    if clips.dtype != torch.uint8:
        raise MetricError(
            f"clips are {str(clips.dtype).removeprefix('torch.')}; give bytes, uint8 in 0..255, as they would be saved"
        )
    if clips.ndim != 5 or clips.shape[2] not in (1, 3) or clips.numel() == 0:
        raise MetricError(
            f"clips have shape {tuple(clips.shape)}; expected (B, T, C, H, W) with 1 or 3 channels"
        )
