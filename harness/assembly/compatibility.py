"""Which method can run on which modality, and why not."""

from __future__ import annotations

from typing import Any

from harness.config.spec import RunSpec
from harness.errors import UserError

MADE_HERE = ("local", "random")
"""Families of encoders that read any modality: they are made for the data set."""


class Unsuited(UserError):
    """A setting that is well formed and cannot run on these data; `why` is the reason alone, without where it stands."""

    def __init__(self, why: str, where: str) -> None:
        super().__init__(f"{where}: {why}")
        self.why = why


def unsuited(spec: RunSpec, method: Any, modality: str) -> str:
    """Why the method of a spec cannot run on data of a modality; empty where it can."""
    encoders = [choice.name for choice in spec.method.needs().encoders]
    strange = [name for name in encoders if name.removeprefix("cached:").partition(":")[0] not in MADE_HERE]
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
