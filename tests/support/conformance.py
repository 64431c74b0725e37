"""Every method on a small backbone: its setting, its batches, and one step."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.backbone.condition import Text, TextShape
from harness.backbone.config import BackboneConfig
from harness.backbone.initialize import initialize
from harness.backbone.kinds import network_of
from harness.backbone.mmdit import MMDiTConfig
from harness.backbone.network import Backbone
from harness.backbone.sit import SiTConfig
from harness.backbone.sizes import Size
from harness.config.backbone_spec import BackboneSpec
from harness.flow.batch import Batch, Draw, View
from harness.flow.student import Student
from harness.runtime.random_streams import Streams
from methods.common.method import Method, Needs

CONFIG = SiTConfig(Size(4, 32, 2), 2, (3, 8, 8), 5)
OF_TEXT = MMDiTConfig(Size(4, 32, 2), 2, (3, 8, 8), 5, text=TextShape(12, 6))


# As deep as the two above.
PICO = BackboneSpec(size="pico")


STREAMS, DIM, HEADS = Streams(0), 24, 3


def configured(cls: type[Method], **settings: Any) -> Any:
    return cls.Config(**settings).resolved(PICO)


def made(cls: type[Method], backbone: BackboneConfig = CONFIG, **settings: Any) -> Method:
    config = configured(cls, **settings)
    backbone = suited(config.needs(), backbone)
    method = cls.build(config, backbone, encoder_dims=(DIM,) * len(config.needs().encoders))
    initialize(method, STREAMS, "method.")
    return method


def suited(needs: Needs, backbone: BackboneConfig) -> BackboneConfig:
    """Return the backbone with what a method adds to the network."""
    extra, features = DIM if needs.summary else 0, DIM if needs.features else 0
    return replace(backbone, extra=extra, outputs=needs.outputs, fused=needs.fused, features=features)


def network(seed: int, config: BackboneConfig = CONFIG) -> Backbone:
    """Return a network with random weights; with the official zeros nothing would reach the output."""
    net, generator = network_of(config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net


def student(needs: Needs, backbone: BackboneConfig = CONFIG) -> Student:
    """Return a student, with a teacher only if needed. The teacher is not frozen, to detect leaking
    gradients."""
    config = suited(needs, backbone)
    return Student(network(0, config), network(1, config) if needs.teacher else None, config)


def batch(
    needs: Needs, size: int = 8, first: int = 0, step: int = 1, backbone: BackboneConfig = CONFIG
) -> Batch:
    """Return samples of which every sixth has lost its condition."""
    index = np.arange(first, first + size)
    y = torch.from_numpy(index % 6)
    views = tuple(view(f"encoder {i}", index, needs) for i in range(len(needs.encoders)))
    x0, text = STREAMS.normal("data", index, CONFIG.shape), captions(index, backbone)
    if text is None:
        return Batch(index, x0, y, y % 5, step, views)
    dropped = text.where(y == 5, captions(np.array([-1]), backbone))
    return Batch(index, x0, dropped, y % 5, step, views, given=text)


def captions(index: np.ndarray, backbone: BackboneConfig) -> Text | None:
    """Return the texts of samples, of different lengths; None for a network that reads labels."""
    if not isinstance(backbone, MMDiTConfig):
        return None
    features = STREAMS.normal("caption", index % 1000, (backbone.text.length, backbone.text.dim))
    real = torch.arange(backbone.text.length) <= torch.from_numpy(index)[:, None] % backbone.text.length
    return Text(features, real)


def view(name: str, index: np.ndarray, needs: Needs) -> View:
    """Return random tokens, and the other features that are needed."""
    tokens = STREAMS.normal(name, index, (CONFIG.tokens, DIM))
    features = View(tokens, STREAMS.normal(f"{name}/summary", index, (DIM,)) if needs.summary else None)
    if not needs.attention:
        return features
    shape = (needs.attention, HEADS, CONFIG.tokens, CONFIG.tokens)
    return features._replace(attention=STREAMS.normal(f"{name}/maps", index, shape).softmax(dim=-1))


def step(method: Method, pupil: Student, given: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss and all gradients by name."""
    losses = method.loss(pupil, given, method.draw(STREAMS, given))
    losses.total.backward()
    named = itertools.chain(pupil.model.named_parameters(), method.named_parameters(prefix="method"))
    return losses.total.detach(), {name: p.grad for name, p in named}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def drawn(draw: Draw) -> dict[str, Tensor]:
    every = {
        "noise": draw.noise,
        "levels": draw.times.levels,
        "which": draw.times.which,
        "groups": draw.groups,
        "kept": None if draw.route is None else draw.route.kept,
        "dropped": None if draw.route is None else draw.route.dropped,
    }
    twin = {} if draw.twin is None else {f"twin/{name}": value for name, value in drawn(draw.twin).items()}
    return {name: value for name, value in (every | draw.extra).items() if value is not None} | twin
