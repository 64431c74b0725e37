"""The check that a method can run on a modality."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.assembly.given import SUITS, gives_tokens
from harness.config.encoder_fields import innermost
from harness.config.spec import RunSpec
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.flow.method import TrainingMethod

ANY_MODALITY = ("local", "random", "run")
"""Encoder families that read any modality, because they are built for the data set or trained on it."""
SEVERAL = {"joint": "a video with its sound", "robot": "the observations and actions of a robot"}
"""Modalities whose samples have several parts, in words."""


class Unsuited(UserError):
    """A valid setting that cannot run on these data; `why` is the reason without the location."""

    def __init__(self, why: str, where: str) -> None:
        super().__init__(f"{where}: {why}")
        self.why = why


def unsuited(spec: RunSpec, method: type[TrainingMethod], modality: str) -> str:
    """Return why the method of a spec cannot run on data of a modality; empty if it can."""
    encoders = [choice.name for choice in spec.method.needs().encoders]
    only_images = [name for name in encoders if innermost(name).partition(":")[0] not in ANY_MODALITY]
    several = SEVERAL.get(modality)
    if several and encoders:
        return f"encoder '{encoders[0]}' reads one modality, and these samples are {several}"
    if modality != "image" and only_images:
        return (
            f"encoder '{only_images[0]}' reads images, and these data are {modality}; "
            "local:small learns on any data"
        )
    if several and not method.parts_apart:
        return (
            f"{spec.method.name} predicts patches, and these samples are {several}, whose patches differ in "
            "size; choose another method"
        )
    if any(part.alone for _, part in spec.data.parts) and not method.parts_mixed:
        compares = "compares samples with one another, but some of these samples lack a part"
        undeclared = "does not support samples that lack a part (it does not set Method.parts_mixed)"
        why = compares if spec.method.needs().group > 1 else undeclared
        return f"{spec.method.name} {why}; set data.parts.*.alone to 0"
    if (given := spec.data.given) and modality not in SUITS[given]:
        known = " or ".join(SUITS[given])
        return f"data.given = {given} needs {known} data, and these are {modality}; leave it out"
    if spec.data.given_noise and not gives_tokens(spec.data, modality):
        noise = f"data.given_noise = {spec.data.given_noise:g}"
        return f"{noise} noises given tokens, but none is given; set data.given"
    if gives_tokens(spec.data, modality) and not method.masks_given:
        return (
            f"{spec.method.name} does not support given tokens (it does not set Method.masks_given); "
            "choose another method"
        )
    if spec.time.apart and not several:
        return (
            f"time.apart draws a time for each part, but these data ({modality}) have one part; leave it out"
        )
    if spec.time.apart and not method.times_apart:
        return f"{spec.method.name} gives a sample one time, so time.apart cannot be set; leave it out"
    return ""
