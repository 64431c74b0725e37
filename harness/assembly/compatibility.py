"""The check that a method can run on a modality."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.config.spec import RunSpec
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.flow.method import TrainingMethod

ANY_MODALITY = ("local", "random")
"""Encoder families that read any modality, since they are built for the data set."""


class Unsuited(UserError):
    """Raised for a valid setting that cannot run on these data; `why` is the reason without the location."""

    def __init__(self, why: str, where: str) -> None:
        super().__init__(f"{where}: {why}")
        self.why = why


def unsuited(spec: RunSpec, method: type[TrainingMethod], modality: str) -> str:
    """Return why the method of a spec cannot run on data of a modality; empty if it can."""
    encoders = [choice.name for choice in spec.method.needs().encoders]
    strange = [
        name for name in encoders if name.removeprefix("cached:").partition(":")[0] not in ANY_MODALITY
    ]
    if modality != "image" and strange:
        return f"encoder '{strange[0]}' reads images, and these data are {modality}; local:small learns on any data"
    if modality == "joint" and encoders:
        return f"encoder '{encoders[0]}' reads one modality, and these samples are a video with its sound"
    if modality == "joint" and not method.parts_apart:
        return (
            f"{spec.method.name} aims at patches, and those of a video and its sound hold different numbers"
        )
    if any(part.alone for _, part in spec.data.parts) and not method.parts_mixed:
        compares = "compares samples with one another, and some of these lack a part"
        silent = "does not say what it makes of a sample that lacks a part (Method.parts_mixed)"
        why = compares if spec.method.needs().group > 1 else silent
        return f"{spec.method.name} {why}; set data.parts.*.alone to 0"
    if spec.time.apart and modality != "joint":
        return f"time.apart gives each part of a sample its times, and these data ({modality}) have one part"
    if spec.time.apart and not method.times_apart:
        return f"{spec.method.name} gives a sample one time, so time.apart cannot be set"
    return ""
