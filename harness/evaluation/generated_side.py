"""The generated side of a run's evaluations: samples from fixed latents and conditions, read by networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from harness.config.evaluation_spec import EvalSpec
from harness.evaluation.conditions import Conditions
from harness.evaluation.features import FeaturePass
from harness.evaluation.inputs import network_inputs
from harness.flow.samplers import Rule
from harness.flow.sampling import Decode, Sampling, are_finite, as_pixels, draw
from harness.runtime.distributed import World
from harness.runtime.rounds import gather_round, rounds


@dataclass
class Generated:
    """The samples of one replicate: features by network and, on rank 0, the pixels needed further."""

    features: dict[str, FeaturePass]
    pixels: list[Tensor]
    labels: list[Tensor]
    places: list[Tensor]
    """Data set indices of the samples whose captions are the conditions; empty for labels."""
    broken: int = 0
    """Number of samples that are not finite."""


@dataclass(frozen=True)
class GeneratedSamples:
    """The samples of an evaluation, of which each has its own latent and condition."""

    spec: EvalSpec
    shape: tuple[int, ...]
    """The shape of a sample of the network."""
    shapes: tuple[tuple[int, ...], ...]
    """The shapes of the parts of a sample in pixels."""
    kinds: Mapping[str, str]
    """Network -> its modality, `image` or `video`."""
    conditions: Conditions
    decode: Decode | None
    rule: Rule
    device: torch.device
    world: World

    def generate(
        self, model: nn.Module, numbers: range, passes: dict[str, FeaturePass], shown: int
    ) -> Generated:
        """Draw the samples with these numbers, and add them to the pass of each network.

        The pixels of the first ones are kept, at least `shown` of them. The work is split over ranks.
        """
        generated = Generated(passes, pixels=[], labels=[], places=[])
        broken: list[Tensor] = []
        for turn in rounds(numbers, self.spec.batch_size, self.world):
            index = np.array(turn.combined)
            x, labels = self._drawn(model, turn.local), self.conditions.labels(index)
            pixels, finite = as_pixels(x.nan_to_num()), gather_round(are_finite(x).byte(), turn, self.world)
            if finite is not None:
                # Read at the end: now the host would wait for the batch instead of drawing the next noise.
                broken.append((finite == 0).sum())
            if turn.combined.start - numbers.start < shown:
                kept = gather_round(pixels, turn, self.world)
                if kept is not None:
                    generated.pixels.append(kept.cpu())
                    generated.labels.append(labels)
                    generated.places.append(torch.from_numpy(self.conditions.places(index)))
            for name, features in passes.items():
                features.add(network_inputs(pixels, self.shapes, self.kinds[name]), labels, turn)
        for features in passes.values():
            features.finish()
        generated.broken = int(torch.stack(broken).sum()) if broken else 0
        return generated

    def _drawn(self, model: nn.Module, numbers: range) -> Tensor:
        index, conditions = np.array(numbers), self.conditions
        sampling = Sampling(
            self.spec, self.shape, conditions.null, self.device, self.decode, self.rule, conditions.given
        )
        return draw(model, sampling, index, conditions.condition(index))
