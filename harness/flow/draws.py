"""The draws of a training step: those of the method, and the noise of given tokens."""

from __future__ import annotations

from dataclasses import replace

import torch

from harness.backbone.times import GivenNoise
from harness.flow.batch import Batch, Draw
from harness.flow.method import TrainingMethod
from harness.runtime.random_streams import Streams


def draws_of(method: TrainingMethod, streams: Streams, batch: Batch) -> Draw:
    """Return a method's draws for a batch, with the noise of given tokens (`data.given_noise`).

    It is s ~ U[0, given_noise] for the given tokens of the first part, whose time the student reads
    (Self-Flow App. E noises the first frame by U[0, 0.2]). Other passes have them clean.
    """
    draw, backbone = method.draw(streams, batch), method.setting.backbone
    if not backbone.given_noise:
        return draw
    levels = backbone.given_noise * streams.uniform("given_noise", batch.index)[:, None]
    noise = GivenNoise(levels, torch.arange(backbone.tokens) < backbone.given[0])
    twin = draw.twin and replace(draw.twin, times=replace(draw.twin.times, given=noise))
    return replace(draw, times=replace(draw.times, given=noise), twin=twin)
