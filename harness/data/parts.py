"""Parts of a joint sample: which of them a run learns, what each weighs in its loss, and how often it comes alone.

A part of weight 0 is left out, so that a run on a video with its sound, `data.audio_weight` at 0 and the other at 1, is the run
on the video alone, bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.backbone.tokens import kind_of
from harness.config.spec import DataSpec
from harness.data.dataset import Dataset, Sample, label_of, shapes_of
from harness.errors import UserError


def modality_of(modality: str, spec: DataSpec) -> str:
    """Of data when the parts of weight 0 are left out; raises `UserError` for weights that the data cannot have."""
    weights = {"video": spec.video_weight, "audio": spec.audio_weight}
    _check_alone(modality, spec)
    if modality != "joint":
        if set(weights.values()) != {0.5}:
            raise UserError(
                f"data.video_weight, data.audio_weight: only a video with its sound has parts to weigh, and {spec.name} is {modality}"
            )
        return modality
    if not any(weights.values()):
        raise UserError(
            "data.video_weight and data.audio_weight are both 0: nothing is left to learn; raise one"
        )
    kept = [kind for kind, weight in weights.items() if weight]
    return "joint" if len(kept) > 1 else kept[0]


def weights_of(dataset: Dataset, spec: DataSpec) -> tuple[float, ...]:
    """Of each part of a data set in the loss; () for a single part."""
    if dataset.modality == "joint":
        return spec.video_weight, spec.audio_weight
    return ()


def alone_of(dataset: Dataset, spec: DataSpec) -> tuple[float, ...]:
    """Of each part of a data set, the share of training samples that have no other; () for a single part."""
    if dataset.modality == "joint":
        return spec.video_alone, spec.audio_alone
    return ()


def _check_alone(modality: str, spec: DataSpec) -> None:
    """Raises `UserError` for shares that the data cannot have."""
    alone = f"data.video_alone = {spec.video_alone}, data.audio_alone = {spec.audio_alone}"
    if not (spec.video_alone or spec.audio_alone):
        return
    if modality != "joint":
        raise UserError(
            f"{alone}: only a video with its sound has parts to mix, and {spec.name} is {modality}"
        )
    if not (spec.video_weight and spec.audio_weight):
        raise UserError(
            f"{alone}: a part of weight 0 is left out of every sample, so there is nothing to mix; raise its weight or set both to 0"
        )
    if spec.video_alone + spec.audio_alone > 1:
        raise UserError(f"{alone}: shares of all samples, at most 1 together")


def kept(dataset: Any, spec: DataSpec) -> Any:
    """The data set without its parts of weight 0."""
    modality = modality_of(dataset.modality, spec)
    if modality == dataset.modality:
        return dataset
    shapes = shapes_of(dataset)
    place = next(i for i, shape in enumerate(shapes) if kind_of(shape) == modality)
    start = sum(map(math.prod, shapes[:place]))
    return Part(dataset, modality, shapes[place], slice(start, start + math.prod(shapes[place])))


@dataclass(frozen=True)
class Part:
    """One part of the samples of a joint data set, as a data set."""

    whole: Dataset
    modality: str
    shape: tuple[int, ...]
    place: slice

    @property
    def classes(self) -> int:
        return self.whole.classes

    @property
    def fingerprint(self) -> str:
        return self.whole.fingerprint

    def __len__(self) -> int:
        return len(self.whole)

    def sample(self, index: int) -> Sample:
        x, label = self.whole.sample(index)
        return Sample(np.ascontiguousarray(x[self.place].reshape(self.shape)), label)

    def label(self, index: int) -> int:
        return label_of(self.whole, index)

    def key(self, index: int) -> bytes:
        return self.whole.key(index)
