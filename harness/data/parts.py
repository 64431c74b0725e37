"""The parts of joint samples: which are learned, their weights in the loss, and how often each is alone.

A part of weight 0 is removed. A run on videos with sound whose weights are 1 for video and 0 for audio is
therefore the run on the videos, bit for bit. The demonstrations of a robot without state and actions are
videos too. Its state is given, so its weight only keeps it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from harness.backbone.tokens import kind_of
from harness.config.data_spec import DataPart, DataSpec
from harness.data.dataset import Capabilities, Dataset, Sample, label_of, shapes_of
from harness.errors import UserError

KINDS = {"joint": ("video", "audio"), "robot": ("video", "state", "action")}
"""The kinds of parts, in order, of each modality whose samples have several."""


def modality_of(modality: str, spec: DataSpec) -> str:
    """Return the modality of data without its parts of weight 0.

    Raises `UserError` for settings of parts that the data do not have.
    """
    kinds = KINDS.get(modality, ())
    if unknown := [kind for kind, part in spec.parts if part != DataPart() and kind not in kinds]:
        has = (
            f"{spec.name} has the parts {', '.join(kinds)}"
            if kinds
            else "only a video with its sound and a robot's demonstrations have parts, and "
            f"{spec.name} is {modality}"
        )
        raise UserError(f"{_settings(spec, unknown)}: {has}; remove it")
    if not kinds:
        return modality
    learned = [kind for kind in kinds if spec.parts.of(kind).weight]
    if not learned:
        weights = " and ".join(f"data.parts.{kind}.weight" for kind in kinds)
        raise UserError(f"{weights} are 0, so nothing is left to learn; set one above 0")
    if modality == "robot":
        return _of_robot(spec, learned)
    _check_alone(spec, kinds)
    return modality if len(learned) == len(kinds) else learned[0]


def _of_robot(spec: DataSpec, learned: list[str]) -> str:
    """Return the modality of a robot's samples with these parts.

    Raises `UserError` unless they are a video alone, or actions with an observation.
    """
    if any(spec.parts.of(kind).alone for kind in KINDS["robot"]):
        raise UserError(
            f"{_settings(spec, KINDS['robot'])}: the parts of a robot's samples belong together; set every "
            "`alone` to 0"
        )
    if learned == ["video"]:
        return "video"
    if "action" not in learned or len(learned) < 2:
        raise UserError(
            f"{_settings(spec, KINDS['robot'])}: learn actions with the video or the state, or the video "
            "alone; set other weights to 0"
        )
    return "robot"


def kinds_of(dataset: Dataset) -> tuple[str, ...]:
    """Return the kinds of the parts of joint samples; () for a single part."""
    return Capabilities(dataset).kinds or KINDS.get(dataset.modality, ())


def weights_of(dataset: Dataset, spec: DataSpec) -> tuple[float, ...]:
    """Return the weight of each part in the loss; () for a single part."""
    return tuple(spec.parts.of(kind).weight for kind in kinds_of(dataset))


def alone_of(dataset: Dataset, spec: DataSpec) -> tuple[float, ...]:
    """Return, for each part, the share of training samples that consist of it only; () for a single part."""
    return tuple(spec.parts.of(kind).alone for kind in kinds_of(dataset))


def _check_alone(spec: DataSpec, kinds: tuple[str, ...]) -> None:
    """Raise `UserError` if the shares `alone` are impossible."""
    parts = [spec.parts.of(kind) for kind in kinds]
    if not any(part.alone for part in parts):
        return
    if not all(part.weight for part in parts):
        raise UserError(
            f"{_settings(spec, kinds)}: a part of weight 0 is removed from every sample, so no part can be "
            "alone; "
            "raise its weight, or set every `alone` to 0"
        )
    if sum(part.alone for part in parts) > 1:
        raise UserError(f"{_settings(spec, kinds)}: the shares `alone` must be at most 1 together; lower one")


def _settings(spec: DataSpec, kinds: Iterable[str]) -> str:
    """Return the settings of these parts that differ from their defaults, as text."""
    given = {kind: spec.parts.of(kind).model_dump(exclude_defaults=True) for kind in kinds}
    return ", ".join(
        f"data.parts.{kind}.{name} = {value}"
        for kind, fields in given.items()
        for name, value in fields.items()
    )


def without_removed_parts(dataset: Dataset, spec: DataSpec) -> Dataset:
    """Return the data set without its parts of weight 0."""
    modality = modality_of(dataset.modality, spec)
    if select := Capabilities(dataset).with_parts:
        return select(tuple(kind for kind in kinds_of(dataset) if spec.parts.of(kind).weight))
    if modality == dataset.modality:
        return dataset
    shapes = shapes_of(dataset)
    place = next(i for i, shape in enumerate(shapes) if kind_of(shape) == modality)
    start = sum(map(math.prod, shapes[:place]))
    return Part(dataset, modality, shapes[place], slice(start, start + math.prod(shapes[place])))


@dataclass(frozen=True)
class Part:
    """A data set of one part of a joint data set's samples."""

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
