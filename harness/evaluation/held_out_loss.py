"""The validation loss `loss:held_out`: the flow loss on fixed held-out samples, noise and times.

    L = mean over samples i and times t = 0, 1/8, ..., 7/8 of || v(x_t, t, y_i) - (eps_i - x0_i) ||^2 / values
    x_t = (1 - t) x0_i + t eps_i

MLPerf Training's FLUX.1 benchmark takes this loss as its quality (mlcommons/training, text_to_image). Its
convention of time is ours: t = 0 is data and t = 1 is noise, so no time is converted. It is named by its
times, `loss:held_out@0.125`, and for samples of several parts by part, `loss:held_out/video`. All parts
together have the mean over parts, as L_gen has with its default weights. On captions it is also named by
their length: `loss:held_out/short_captions` for at most the median number of words, else
`loss:held_out/long_captions`. On generated captions it is named by their attributes too, for example
`loss:held_out/two_digits` and `loss:held_out/left_of`.

Nothing is sampled and no other network is used. The condition is that of the sample, never dropped. Noise
depends on `eval.seed` and the index in the data set, so a sample has one noise, shared by all times.

A network with an extra token (REG) has no value. In training it is given the noised token of the sample, an
encoder's output for the clean image. With it the loss would be that of an easier task, and REG would win by
it. Without it, or with pure noise in its place, the network gets an input that it is not trained on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.backbone.condition import Condition
from harness.backbone.times import Times
from harness.backbone.tokens import split_parts
from harness.config.evaluation_spec import EvalSpec
from harness.data.dataset import (
    Capabilities,
    Dataset,
    label_of,
    part_kinds,
    pictured,
    shapes_of,
    x_shape,
)
from harness.evaluation.conditions import clean_samples
from harness.evaluation.metric_table import HELD_OUT_LOSS
from harness.flow.path import velocity_target
from harness.flow.samplers import Rule, plain
from harness.runtime.distributed import World
from harness.runtime.random_streams import Streams
from harness.runtime.rounds import gather_round, rounds
from harness.text.captions import RunCaptions
from metrics import MetricError, Value
from metrics.intervals import around

TIMES = tuple(step / 8 for step in range(8))
"""The eight equidistant times, in MLPerf's convention and in ours."""
EXTRA_TOKEN = (
    "the network has an extra token, an encoder's output for the held-out sample itself, so that its "
    "loss is not comparable with that of other networks"
)
FEATURES = EXTRA_TOKEN.replace("an extra token", "further channels")


class HeldOutLoss:
    """The validation loss of a run, on its first `eval.samples` held-out samples.

    Every rank calls it. Batches are split over ranks, and rank 0 computes the values from all rows in
    single-process order, so they have the same bits for any number of ranks.
    """

    def __init__(
        self,
        spec: EvalSpec,
        dataset: Dataset,
        held_out: np.ndarray,
        captions: RunCaptions | None,
        world: World,
        rule: Rule = plain,
    ) -> None:
        """`dataset` is the one that the network is trained on: latents, if it is trained on latents. `rule`
        is the method's velocity at sampling, here always without its guidance."""
        self.rule = rule
        self.place = held_out[: spec.samples]
        self.spec, self.dataset, self.captions, self.world = spec, dataset, captions, world
        self.shapes = shapes_of(dataset)
        texts = captions.first_texts(self.place) if captions is not None and captions.texts_known else []
        self.groups = by_length(texts) | (by_attribute(dataset, self.place) if texts else {})
        """Groups of captions by name, as bool (N,) over the samples; none has no sample."""

    # Any: JSON.
    def about(self) -> dict[str, Any]:
        """Return what the values depend on in addition to the network, as JSON."""
        which = hashlib.sha256(self.place.astype(np.int64).tobytes()).hexdigest()
        return {"times": list(TIMES), "samples": len(self.place), "index": which[:16]}

    def __call__(self, model: nn.Module) -> dict[str, Value]:
        """Return the values by name, the mean over all times first; an empty result on ranks other than 0.

        Raises `MetricError` if the loss is not finite, and for a network that generates features too.
        """
        config = getattr(model, "config", None)
        for name, reason in (("extra", EXTRA_TOKEN), ("features", FEATURES)):
            if getattr(config, name, 0):
                raise MetricError(reason)
        rows = []
        for turn in rounds(range(len(self.place)), self.spec.batch_size, self.world):
            losses = self._losses(model, self.place[turn.local.start : turn.local.stop])
            gathered = gather_round(losses, turn, self.world)
            if gathered is not None:
                rows.append(gathered.cpu())
        if not self.world.main:
            return {}
        losses_NKP = torch.cat(rows).numpy()
        if not np.isfinite(losses_NKP).all():
            raise MetricError("the loss is not finite")
        return named_values(losses_NKP, self._kinds(model), self.groups)

    def _kinds(self, model: nn.Module) -> list[str]:
        """Return the kinds of the parts that have a loss: those with generated values."""
        generated = getattr(getattr(model, "config", None), "generated_values", None)
        kinds = list(part_kinds(self.dataset))
        if generated is None:
            return kinds
        masks = split_parts(generated[None], self.shapes)
        return [kind for kind, mask in zip(kinds, masks, strict=True) if mask.any()]

    @torch.no_grad()
    def _losses(self, model: nn.Module, place: np.ndarray) -> Tensor:
        """Return the loss of each sample, time and part, float64 (B, K, P), on the device."""
        device, bfloat16 = self.world.device, self.spec.precision == "bfloat16"
        x0, y = self._inputs(place)
        x0, y = x0.to(device), y.to(device)
        noise = Streams(self.spec.seed).normal("held_out_noise", place, x_shape(self.dataset)).to(device)
        target, at_times = velocity_target(x0, noise), []
        config = getattr(model, "config", None)
        generated = getattr(config, "generated_values", None)
        generated = None if generated is None else generated.to(device)
        for t in TIMES:
            level = Times.per_sample(torch.full((len(place),), t, device=device))
            x = (1 - t) * x0 + t * noise
            x = x if generated is None else torch.where(generated, x, x0)
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                velocity = self.rule(model, x, level, y)
            at_times.append(self._of_parts((velocity.float() - target).square(), generated))
        return torch.stack(at_times, dim=1)

    def _of_parts(self, squares: Tensor, generated: Tensor | None) -> Tensor:
        """Return the mean square over the generated values of each part with any, float64 (B, P)."""
        parts = [part.flatten(1).double() for part in split_parts(squares, self.shapes)]
        if generated is None:
            return torch.stack([part.mean(dim=1) for part in parts], dim=1)
        masks = [mask.flatten() for mask in split_parts(generated[None], self.shapes)]
        kept = [part[:, mask].mean(dim=1) for part, mask in zip(parts, masks, strict=True) if mask.any()]
        return torch.stack(kept, dim=1)

    def _inputs(self, place: np.ndarray) -> tuple[Tensor, Condition]:
        """Return the samples as the network is trained on them, float32 (B, ...), and their conditions.

        A condition is the first caption of a sample, or its label.
        """
        x0 = clean_samples(self.dataset, place, self.spec.seed)
        if self.captions is not None:
            return x0, self.captions.first(place)
        return x0, torch.tensor([label_of(self.dataset, int(index)) for index in place])


def by_length(texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the groups of short and long captions; empty without captions, or if all have one length."""
    words = np.array([len(text.split()) for text in texts])
    is_long = words > np.median(words) if len(words) else np.zeros(0, bool)
    return {"short_captions": ~is_long, "long_captions": is_long} if is_long.any() else {}


def by_attribute(dataset: Dataset, place: np.ndarray) -> dict[str, np.ndarray]:
    """Return the groups of samples whose first caption states an attribute; empty if they are not known."""
    attributes = Capabilities(pictured(dataset)).caption_attributes
    if attributes is None:
        return {}
    stated = [attributes(int(index)) for index in place]
    names = sorted({name for own in stated for name in own})
    return {name: np.array([name in own for own in stated]) for name in names}


def named_values(
    losses_NKP: np.ndarray, parts: list[str], groups: Mapping[str, np.ndarray]
) -> dict[str, Value]:
    """Return mean losses by name, each with its interval over samples: all, by time, by part, by group."""
    by_time = losses_NKP.mean(axis=2)
    named = {HELD_OUT_LOSS: by_time.mean(axis=1)}
    named |= {f"{HELD_OUT_LOSS}@{t:g}": by_time[:, k] for k, t in enumerate(TIMES)}
    if len(parts) > 1:
        by_part = losses_NKP.mean(axis=1)
        named |= {f"{HELD_OUT_LOSS}/{kind}": by_part[:, p] for p, kind in enumerate(parts)}
    named |= {f"{HELD_OUT_LOSS}/{name}": named[HELD_OUT_LOSS][rows] for name, rows in groups.items()}
    return {name: _mean(losses) for name, losses in named.items()}


def _mean(losses: np.ndarray) -> Value:
    count = len(losses)
    if count < 2:
        return Value(float(losses.mean()), n=count)
    return around(float(losses.mean()), float(losses.std(ddof=1)) / math.sqrt(count), count)
