"""Video features from any image network: content, amount of change, and direction of change.

With f_t the features of frame t, a clip has three terms, each as wide as f:

    mean_t f_t                                  content, independent of the order of frames
    mean_t |f_{t+1} - f_t|                      amount of change: detects shuffled, frozen and slowed clips
    mean of the second half - of the first      direction of change: the sign flips for reversed clips

The name is `video:<image extractor>`, for example `video:torchscript:nets/mobilenetv2.ts?size=96&dim=1280`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from metrics.extractors.base import Extractor
from metrics.extractors.local import TrainingImages
from metrics.extractors.registry import extractor_modality, load_extractor
from metrics.extractors.video.base import VideoExtractor, check_clips
from metrics.value import MetricError

CHUNK = 256
"""Number of frames in one pass of the network."""


def load(
    where: Any, *, device: torch.device, images: Any = None, labels: Any = None, **given: Any
) -> VideoExtractor:
    """Load the video extractor that applies the image extractor `where` to frames.

    For `video:local`, `images` are clips (n, T, C, H, W) uint8 and `labels` (n,) their labels. Each frame is
    then a training image with the label of its clip.
    """
    if not where or extractor_modality(str(where)) != "image":
        raise MetricError(
            f"extractor 'video:{where or ''}' needs an image extractor, for example video:inception or "
            "video:torchscript:<file>"
        )
    if isinstance(images, TrainingImages):
        images = frames_of(images)
    elif images is not None:
        images, labels = _frames(images, labels)
    return from_images(load_extractor(str(where), device=str(device), images=images, labels=labels, **given))


def frames_of(clips: TrainingImages) -> TrainingImages:
    """Return the frames of clips as training images, each with the label of its clip."""
    return TrainingImages(f"frames {clips.content}", clips.shape[1:], lambda: _frames(*clips.read()))


def _frames(images: np.ndarray, labels: Any) -> tuple[np.ndarray, Any]:
    clips = torch.from_numpy(np.require(images, requirements=["C", "W"]))
    check_clips(clips)
    labels = None if labels is None else np.repeat(np.asarray(labels), clips.shape[1])
    return clips.flatten(0, 1).numpy(), labels


def from_images(extract: Extractor) -> VideoExtractor:
    """Return an extractor of 3 * dim features per clip from one of dim features per image."""

    def network(clips: Tensor) -> Tensor:
        frames = clips.flatten(0, 1).split(CHUNK)
        return clip_features(torch.cat([extract(part) for part in frames]).unflatten(0, clips.shape[:2]))

    return VideoExtractor(
        name=f"video:{extract.name}",
        dim=3 * extract.dim,
        sha256=extract.sha256,
        preprocessing=f"each frame: {extract.preprocessing}; mean, mean |change|, late minus early",
        channels=extract.channels,
        device=extract.device,
        network=network,
        least=2,
        accuracy=extract.accuracy,
    )


def clip_features(frames: Tensor) -> Tensor:
    """Return the features (B, 3 d) of clips from those of their frames (B, T, d), T >= 2.

    If T is odd, the middle frame belongs to neither half.
    """
    half = frames.shape[1] // 2
    change = frames.diff(dim=1).abs().mean(1)
    return torch.cat([frames.mean(1), change, frames[:, -half:].mean(1) - frames[:, :half].mean(1)], 1)
