"""A small student, batches and methods for comparing losses with closed forms."""

from __future__ import annotations

import numpy as np
import torch

from harness.backbone.initialize import initialize
from harness.backbone.sit import SiT, SiTConfig
from harness.backbone.sizes import Size
from harness.flow.batch import Batch, View
from harness.flow.path import interpolate
from harness.flow.student import Student
from harness.runtime.random_streams import Streams

CONFIG = SiTConfig(Size(4, 32, 2), 2, (3, 8, 8), 5)


STREAMS = Streams(0)


def student(seed: int = 0) -> Student:
    networks = []
    for offset in (0, 1):
        network = SiT(CONFIG)
        generator = torch.Generator().manual_seed(seed + offset)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        networks.append(network)
    return Student(networks[0], networks[1].requires_grad_(False), CONFIG)


def batch(size: int = 64, first: int = 0) -> Batch:
    index = np.arange(first, first + size)
    y = torch.from_numpy(index % 6)
    x0, features = STREAMS.normal("data", index, CONFIG.shape), STREAMS.normal("features", index, (16, 24))
    return Batch(index, x0, y, y, views=(View(features),))


def build(cls, **settings):
    config = cls.Config(**settings)
    method = cls.build(config, CONFIG, encoder_dims=(24,))
    initialize(method, STREAMS, "method.")
    return method


def loss(method, size: int = 8):
    """Return the method's losses, and the student, batch, draw and prediction that they are computed from."""
    pupil, given = student(), batch(size)
    draw = method.draw(Streams(0), given)
    x = interpolate(given.x0, draw.noise, draw.times, CONFIG)
    prediction = pupil(x, draw.times, given.y, taps=(1, 2, 3, 4), groups=draw.groups)
    return method.loss(pupil, given, draw), pupil, given, draw, prediction


def f64(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def unit(x: np.ndarray, axis: int = -1) -> np.ndarray:
    return x / np.linalg.norm(x, axis=axis, keepdims=True)
