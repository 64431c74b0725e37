"""Pairs of prompts under the same noise: how often samples obey the prompt that they show, and the other one.

    x_i  = G(z_i, p_i)          y_i = G(z_i, p_{i+1})          w_i = G(z_{n+i}, p_i)

y_i has the noise of x_i and the prompt of x_{i+1}. It should obey p_{i+1}, and obey p_i no more often than a
real sample of p_{i+1} does, whose captions may have an attribute in common. w_i has the prompt of x_i and
other noise, and should differ from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.assembly.given import gives_tokens
from harness.config.spec import RunSpec
from harness.data.dataset import Capabilities, Dataset, pictured, shapes_of
from harness.data.open import images, split
from harness.errors import UserError
from harness.evaluation.reference_free import ReferenceFreeMetric, prepared
from harness.records.checkpoint_files import step_of
from harness.train.trained_run import Drawing, checkpoint_of_run, dataset_to_draw, drawing_of_run
from metrics import MetricError, Value
from metrics.domain.geneval import TASKS
from metrics.intervals import around, share


class Obedience(NamedTuple):
    """The shares of samples that obey prompts in one attribute; None if no caption states it."""

    attribute: str
    shown: Value | None
    """The samples y_i that obey the prompt that they show, p_{i+1}."""
    other: Value | None
    """The samples y_i that obey the prompt of the sample with the same noise, p_i."""
    real: Value | None
    """The real samples of p_{i+1} that obey p_i, because their prompts agree in the attribute."""


class Change(NamedTuple):
    """The difference of pairs of samples."""

    differ: Value
    """Share of the pairs of which some value differs."""
    distance: Value
    """Mean absolute difference of the values of a pair, as a share of their range."""


@dataclass(frozen=True)
class SwappedPrompts:
    """The measurement of one checkpoint."""

    step: int
    pairs: int
    prompts: tuple[str, str]
    """The first pair, p_0 and p_1."""
    obedience: tuple[Obedience, ...]
    other_prompt: Change
    """x_i and y_i: the same noise."""
    other_noise: Change
    """x_i and w_i: the same prompt."""


def swap_prompts(
    path: Path, spec: RunSpec, step: int | None, pairs: int, device: torch.device
) -> SwappedPrompts:
    """Draw `pairs` samples three times and measure them; prompts are the first captions of held-out samples.

    Raises `UserError` for a run on labels or with given tokens, and for captions without a known truth.
    """
    dataset = dataset_to_draw(path, spec)
    kinds = _attributes(spec, dataset)
    drawing = drawing_of_run(path, spec, step, pairs, (), device)
    same = np.arange(pairs)
    following = np.roll(same, -1)
    first, swapped = (_drawn(drawing, same, of) for of in (same, following))
    renewed = _drawn(drawing, same + pairs, same)
    places = drawing.conditions.places(same)
    pictures = pictured(dataset)
    train = split(dataset, spec.data.held_out).train
    metrics = [prepared(f"obeys:{kind}", pictures, train, device) for kind in kinds]
    real = torch.from_numpy(images(pictures, places[following])[0])
    texts = drawing.conditions.texts(same[:2])
    return SwappedPrompts(
        step=step_of(checkpoint_of_run(path, step)),
        pairs=pairs,
        prompts=(texts[0], texts[1]),
        obedience=tuple(
            Obedience(
                kind,
                _measured(metric, swapped, pictures, places[following]),
                _measured(metric, swapped, pictures, places),
                _measured(metric, real, pictures, places),
            )
            for kind, metric in zip(kinds, metrics, strict=True)
        ),
        other_prompt=changed(first, swapped),
        other_noise=changed(first, renewed),
    )


def changed(first: Tensor, second: Tensor) -> Change:
    """Return the difference of pairs of samples uint8 (N, ...)."""
    pairs = len(first)
    distance = (first.int() - second.int()).abs().flatten(1).double()
    differ = (distance > 0).any(dim=1).numpy()
    means = (distance.mean(dim=1) / 255).numpy()
    return Change(share(differ, pairs), around(means.mean(), means.std(ddof=1) / math.sqrt(pairs), pairs))


def _attributes(spec: RunSpec, dataset: Dataset) -> list[str]:
    """Return the attributes that captions state, without GenEval's tasks, which judge the same ones."""
    if not spec.text.encoder:
        raise UserError(
            "--prompts needs a run that is conditioned on text, but this one is conditioned on class labels"
        )
    if gives_tokens(spec.data, dataset.modality):
        raise UserError(
            "--prompts exchanges captions, but samples of this run have given tokens, which show their own "
            "caption; use a run without data.given"
        )
    kinds = [kind for kind in Capabilities(dataset).states if kind not in TASKS]
    if not kinds:
        raise UserError(
            f"--prompts needs captions whose truth is known, but those of data.name = {spec.data.name} are "
            "texts; use a run on prompts, or on bounce with text, or measure clip_score with flowrace eval"
        )
    return kinds


def _drawn(drawing: Drawing, noise: np.ndarray, prompts: np.ndarray) -> Tensor:
    """Return samples with the noise of some sample numbers (N,) and the prompts of others, uint8 (N, ...)."""
    size = drawing.job.spec.batch_size
    starts = range(0, len(noise), size)
    return torch.cat(
        [drawing.batch(noise[start : start + size], prompts[start : start + size]) for start in starts]
    )


def _measured(
    metric: ReferenceFreeMetric, samples: Tensor, dataset: Dataset, places: np.ndarray
) -> Value | None:
    """Return the share of samples that obey the captions of data set indices; None if none states it."""
    try:
        return metric(samples, shapes_of(dataset), torch.from_numpy(places))
    except MetricError:
        return None
