"""The validation loss `loss:held_out`: the flow loss on fixed held-out samples, noise and times.

    L = mean over samples i and times t = 0, 1/8, ..., 7/8 of || v(x_t, t, y_i) - (eps_i - x0_i) ||^2 / values
    x_t = (1 - t) x0_i + t eps_i

MLPerf Training's FLUX.1 benchmark takes this loss as its quality (mlcommons/training, text_to_image). Its
convention of time is ours: t = 0 is data and t = 1 is noise, so no time is converted. It is named by its
times, `loss:held_out@0.125`, and for samples of several parts by part, `loss:held_out/video`. All parts
together have the mean over parts, as L_gen has with its default weights. On captions it is also named by
their length: `loss:held_out/short_captions` for at most the median number of words, else
`loss:held_out/long_captions`.

Nothing is sampled and no other network is used. The condition is that of the sample, never dropped. Noise
depends on `eval.seed` and the index in the data set, so a sample has one noise, shared by all times.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.backbone.condition import Condition
from harness.backbone.times import Times
from harness.backbone.tokens import kind_of, split_parts
from harness.config.spec import EvalSpec
from harness.data.dataset import Capabilities, Dataset, shapes_of, x_shape
from harness.data.open import from_pixels, images
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
    "the network has an extra token, and the clean token of a held-out sample is an output of the encoder, "
    "which evaluations do not open"
)
FEATURES = EXTRA_TOKEN.replace("an extra token", "further channels").replace("clean token", "clean features")


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
        words = [len(text.split()) for text in texts]
        self.is_long = np.array(words) > np.median(words) if words else np.zeros(len(self.place), bool)
        """True for samples whose caption has more words than the median, bool (N,)."""

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
        return named_values(losses_NKP, [kind_of(shape) for shape in self.shapes], self.is_long)

    @torch.no_grad()
    def _losses(self, model: nn.Module, place: np.ndarray) -> Tensor:
        """Return the loss of each sample, time and part, float64 (B, K, P), on the device."""
        device, bfloat16 = self.world.device, self.spec.precision == "bfloat16"
        x0, y = self._inputs(place)
        x0, y = x0.to(device), y.to(device)
        noise = Streams(self.spec.seed).normal("held_out_noise", place, x_shape(self.dataset)).to(device)
        target, at_times = velocity_target(x0, noise), []
        for t in TIMES:
            level = Times.per_sample(torch.full((len(place),), t, device=device))
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                velocity = self.rule(model, (1 - t) * x0 + t * noise, level, y)
            squares = split_parts((velocity.float() - target).square(), self.shapes)
            at_times.append(torch.stack([part.flatten(1).double().mean(dim=1) for part in squares], dim=1))
        return torch.stack(at_times, dim=1)

    def _inputs(self, place: np.ndarray) -> tuple[Tensor, Condition]:
        """Return the samples as the network is trained on them, float32 (B, ...), and their conditions.

        A condition is the first caption of a sample, or its label.
        """
        latent = Capabilities(self.dataset).latent
        if latent is None:
            pixels, labels = images(self.dataset, place)
            x0 = from_pixels(pixels)
        else:
            labels = [latent.label(int(index)) for index in place]
            noise = Streams(self.spec.seed).normal("held_out_posterior", place, self.dataset.shape)
            x0 = latent.draws(place, None, noise)
        return x0, torch.as_tensor(labels) if self.captions is None else self.captions.first(place)


def named_values(losses_NKP: np.ndarray, parts: list[str], is_long_N: np.ndarray) -> dict[str, Value]:
    """Return mean losses by name, each with its interval over samples: all, by time, by part, by length."""
    by_time = losses_NKP.mean(axis=2)
    named = {HELD_OUT_LOSS: by_time.mean(axis=1)}
    named |= {f"{HELD_OUT_LOSS}@{t:g}": by_time[:, k] for k, t in enumerate(TIMES)}
    if len(parts) > 1:
        by_part = losses_NKP.mean(axis=1)
        named |= {f"{HELD_OUT_LOSS}/{kind}": by_part[:, p] for p, kind in enumerate(parts)}
    if is_long_N.any():
        by_sample = named[HELD_OUT_LOSS]
        named[f"{HELD_OUT_LOSS}/short_captions"] = by_sample[~is_long_N]
        named[f"{HELD_OUT_LOSS}/long_captions"] = by_sample[is_long_N]
    return {name: _mean(losses) for name, losses in named.items()}


def _mean(losses: np.ndarray) -> Value:
    count = len(losses)
    if count < 2:
        return Value(float(losses.mean()), n=count)
    return around(float(losses.mean()), float(losses.std(ddof=1)) / math.sqrt(count), count)
