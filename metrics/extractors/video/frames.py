"""Video from any network of images: what is shown, how much it changes, and which way.

With f_t the features of frame t, a clip has three terms, each as wide as f:

    mean_t f_t                                  what is shown; blind to the order of frames
    mean_t |f_{t+1} - f_t|                      how much changes: shuffled, frozen and slowed clips differ
    mean of the second half - of the first      which way: reversed clips differ, in sign

The name is `video:<image extractor>`, as in `video:torchscript:nets/mobilenetv2.ts?size=96&dim=1280`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from metrics.extractors.base import Extractor
from metrics.extractors.registry import extractor_modality, load_extractor
from metrics.extractors.video.base import VideoExtractor, check_clips
from metrics.value import MetricError

CHUNK = 256
"""Frames that pass the network at once."""


def load(
    where: Any, *, device: torch.device, images: Any = None, labels: Any = None, **given: Any
) -> VideoExtractor:
    """The extractor over clips of the image extractor that `where` names.

    For one that is trained here, `images` are clips (n, T, C, H, W) uint8 and `labels` (n,) theirs: each
    frame is an image with the label of its clip.
    """
    if not where or extractor_modality(str(where)) != "image":
        raise MetricError(
            f"extractor 'video:{where or ''}' needs one of images, as video:inception or video:torchscript:<file>"
        )
    if images is not None:
        clips = torch.from_numpy(np.require(images, requirements=["C", "W"]))
        check_clips(clips)
        images = clips.flatten(0, 1).numpy()
        labels = None if labels is None else np.repeat(np.asarray(labels), clips.shape[1])
    return from_images(load_extractor(str(where), device=str(device), images=images, labels=labels, **given))


def from_images(extract: Extractor) -> VideoExtractor:
    """An extractor of 3 x dim features a clip from one of dim features an image."""

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
    """Features of frames (B, T, d), T >= 2 -> of clips (B, 3 d), as above; the middle frame of an odd T is in
    no half."""
    half = frames.shape[1] // 2
    change = frames.diff(dim=1).abs().mean(1)
    return torch.cat([frames.mean(1), change, frames[:, -half:].mean(1) - frames[:, :half].mean(1)], 1)
