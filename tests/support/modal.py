"""Tiny runs of every modality, seconds long."""

from __future__ import annotations

from unittest.mock import patch

import torch

from harness.config import registry
from harness.config.spec import RunSpec
from harness.costs.flops import Cost
from harness.data.open import open_dataset, split
from harness.train.state import Run, build_run
from tests.support.conformance_runs import encoder_words
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


REFUSED = {
    ("joint", "repa"): "reads one modality",
    ("joint", "irepa"): "reads one modality",
    ("joint", "relational"): "reads one modality",
    ("joint", "gram"): "reads one modality",
    ("joint", "haste"): "reads one modality",
    ("joint", "reg"): "reads one modality",
    ("joint", "reed"): "reads one modality",
    ("joint", "pixelrepa"): "reads one modality",
    ("joint", "redi"): "reads one modality",
    ("joint", "sra2"): "predicts patches",
    ("joint", "self_transcendence"): "predicts patches",
}
"""Why a method cannot run on a modality."""


def method_words(method: str) -> list[str]:
    """Return the settings of a method, or of a stack such as `repa+tread`, with a random encoder if it needs
    one."""
    words, terms = [f"method.name={method}"], method.split("+")
    for term in terms:
        table = "method" if len(terms) == 1 else f"method.{term}"
        words += encoder_words(table, registry.load("method", term))
    return words


def refusal(modality: str, method: str) -> str:
    """Return why a method, or a term of a stack, cannot run on a modality; empty if it can."""
    reasons = [REFUSED[modality, term] for term in method.split("+") if (modality, term) in REFUSED]
    return reasons[0] if reasons else ""


def built(spec: RunSpec) -> Run:
    """Return a run at step 0, on the CPU, whose cost is not counted: that takes longer than its steps."""
    dataset = open_dataset(spec.data)
    with patch("harness.train.state.count_once", return_value=Cost({}, spec.train.steps, 0)):
        return build_run(spec, dataset, split(dataset, spec.data.held_out), torch.device("cpu"))
