"""Tiny runs of every modality, seconds long."""

from __future__ import annotations

from harness.config.spec import RunSpec
from tests.support.runs import tiny

SMALL = (
    "train.steps=6",
    "train.checkpoint_every=3",
    "train.keep_checkpoints=9",
    "eval.every=3",
    "eval.sampler_steps=2",
    "data.held_out=0.9",
)
MODALITIES = {
    "video": (
        "data.name=moving_digits",
        "data.frames=4",
        "backbone.patch=4",
        "backbone.patch_time=2",
        "eval.metrics=['fd:video:local']",
    ),
    "audio": ("data.name=tones", "data.frames=16", "backbone.patch=2"),
    "joint": (
        "data.name=bounce",
        "data.frames=4",
        "backbone.patch=4",
        "backbone.patch_time=2",
        "backbone.patch_sound=4",
    ),
}


def modal(modality: str, *overrides: str) -> RunSpec:
    return tiny(*SMALL, *MODALITIES[modality], *overrides)
