"""The given tokens of a spec: which tokens of a sample are not generated, and the data that can have them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from harness.config.data_spec import DataSpec
from harness.errors import UserError

# Plans read the modalities, and import no torch.
if TYPE_CHECKING:
    from harness.backbone.config import BackboneConfig
    from harness.backbone.tokens import Part

SUITS = {"first_frame": ("video", "joint"), "top_half": ("image",)}
"""Value of `data.given` -> modalities that it suits."""


def gives_tokens(spec: DataSpec, modality: str) -> bool:
    """Return whether some tokens of the samples of a run are given."""
    return bool(spec.given) or modality == "robot"


def given_tokens(spec: DataSpec, config: BackboneConfig, modality: str) -> tuple[int, ...]:
    """Return the number of first tokens of each part that are given; () for none.

    The observation of a robot is given: its state, and the first frame of its video. Raises `UserError` if a
    token would be given and generated in part.
    """
    first, *others = config.parts
    if modality == "robot":
        if spec.given_noise and len(first.axes) == 1:
            raise UserError(
                f"data.given_noise = {spec.given_noise:g} noises the given frame, but this policy observes a "
                "state alone; leave it out"
            )
        return _of_observation(first), *(part.tokens if part.kind == "state" else 0 for part in others)
    if not spec.given:
        return ()
    rows = first.grid[0]
    if spec.given == "first_frame" and (first.patch[0] > 1 or rows == 1):
        problem = (
            f"a token has {first.patch[0]} frames; set backbone.patch_time to 1"
            if first.patch[0] > 1
            else "a clip has one frame, so nothing is left to generate; raise data.frames"
        )
        raise UserError(f"data.given = first_frame: {problem}")
    if spec.given == "top_half" and rows % 2:
        raise UserError(
            f"data.given = top_half: the {rows} rows of tokens have no half; choose another backbone.patch"
        )
    each_row = math.prod(first.grid[1:])
    return (each_row * (1 if spec.given == "first_frame" else rows // 2), *(0 for _ in others))


def _of_observation(first: Part) -> int:
    """Return the number of given tokens of a robot's first part: its first frame, or its state.

    Raises `UserError` if the first frame shares a token.
    """
    if len(first.axes) == 1:
        return first.tokens
    if first.patch[0] > 1:
        raise UserError(
            f"backbone.patch_time = {first.patch[0]}: the current frame of a robot is given, so it needs "
            "its own tokens; set 1"
        )
    return math.prod(first.grid[1:])
