"""Given tokens: clean in every pass, in no loss, and unchanged by every sampler."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.backbone.config import BackboneConfig
from harness.backbone.network import Prediction
from harness.backbone.times import Times
from harness.config import registry
from harness.config.evaluation_spec import EvalSpec
from harness.flow.draws import draws_of
from harness.flow.samplers import SAMPLERS
from harness.flow.sampling import Sampling, draw
from harness.flow.student import Student
from methods.common.method import Method, Needs
from methods.flow import Flow
from tests.support.conformance import (
    CONFIG,
    OF_TEXT,
    STREAMS,
    batch,
    captions,
    configured,
    made,
    network,
    step,
    student,
)

FIRST = 8
GIVEN, OF_TEXT_GIVEN = (
    replace(config, given=(FIRST,)) for config in (CONFIG, replace(OF_TEXT, text_time="clean"))
)
"""The upper half of an image of 16 tokens is given."""
REFUSED = ["attention_separation", "dupa", "pixelrepa", "redi", "reg", "self_transcendence"]
MASKING = [name for name in registry.METHODS if name not in REFUSED]
CPU = torch.device("cpu")


def changed(values: Tensor, dim: int) -> Tensor:
    """Return values with those of given tokens changed."""
    ahead, rest = values.split([FIRST, values.shape[dim] - FIRST], dim=dim)
    return torch.cat([3 - ahead, rest], dim=dim)


def changed_rows(x: Tensor) -> Tensor:
    """Return images with their given upper half changed."""
    return torch.cat([3 - x[:, :, :4], x[:, :, 4:]], dim=2)


@dataclass(frozen=True)
class Changed(Student):
    """A student with changed outputs at given tokens, which records the inputs of both networks."""

    inputs: list[Tensor] = field(default_factory=list)

    def __call__(self, x: Tensor, *args: Any, **asked: Any) -> Prediction:
        self.inputs.append(x)
        found = super().__call__(x, *args, **asked)
        return found._replace(
            velocity=changed_rows(found.velocity),
            hidden={layer: changed(h, 1) for layer, h in found.hidden.items()},
            heads={layer: (changed(q, 2), k) for layer, (q, k) in found.heads.items()},
            outputs={layer: changed_rows(v) for layer, v in found.outputs.items()},
        )

    def teach(self, x: Tensor, *args: Any, **asked: Any) -> Tensor:
        self.inputs.append(x)
        return changed(super().teach(x, *args, **asked), 1)


@pytest.mark.parametrize("name", MASKING)
def test_given_tokens_are_clean_in_every_pass_and_in_no_loss(name: str) -> None:
    cls = registry.load("method", name)
    # A wider convolution mixes given tokens into generated ones, as attention does.
    objective = made(cls, GIVEN, **({"kernel": 1} if name == "irepa" else {}))
    needs = objective.needs()
    sample = batch(needs)
    pupil = student(needs, GIVEN)
    other = Changed(pupil.model, pupil.ema, pupil.config)
    drawn = objective.draw(STREAMS, sample)
    plain, moved = (objective.loss(one, sample, drawn) for one in (pupil, other))
    for part, value in plain.parts.items():
        assert torch.equal(value, moved.parts[part]), part
    assert len(other.inputs) == 1 + needs.teacher
    for x in other.inputs:
        assert torch.equal(x[:, :, :4], sample.x0[:, :, :4])
        assert not torch.equal(x[:, :, 4:], sample.x0[:, :, 4:])


def test_flow_loss_is_the_mean_over_generated_values() -> None:
    objective, pupil, sample = made(Flow, GIVEN), student(Needs(), GIVEN), batch(Needs())
    drawn = objective.draw(STREAMS, sample)
    t = drawn.times.levels[:, :, None, None]
    x = torch.cat([sample.x0[:, :, :4], ((1 - t) * sample.x0 + t * drawn.noise)[:, :, 4:]], dim=2)
    velocity = pupil.model(x, drawn.times, sample.y).velocity
    expected = (velocity - (drawn.noise - sample.x0))[:, :, 4:].square().mean()
    assert objective.loss(pupil, sample, drawn).total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert not velocity[:, :, :4].any() and velocity[:, :, 4:].all()


@pytest.mark.parametrize("name", MASKING)
def test_method_equals_flow_with_given_tokens_when_off(name: str) -> None:
    cls: type[Method] = registry.load("method", name)
    results = [
        step(made(one, GIVEN, **settings), student(Needs(), GIVEN), batch(Needs()))
        for one, settings in ((Flow, {}), (cls, cls.Config.off))
    ]
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(a, results[1][1][n]) for n, a in results[0][1].items() if a is not None)


@pytest.mark.parametrize("config", [GIVEN, OF_TEXT_GIVEN], ids=["labels", "text"])
def test_network_gives_time_zero_to_given_tokens(config: BackboneConfig) -> None:
    """Without attention between tokens, a given token is that of a clean pass, whatever the sample's time."""
    net, index = network(3, config), np.arange(2)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1]) if config is GIVEN else captions(index, config)
    groups = torch.arange(16).expand(2, -1)
    noisy, clean = (
        net(x, Times.per_sample(torch.full((2,), time)), y, taps=(1,), groups=groups).hidden[1]
        for time in (0.7, 0.0)
    )
    assert torch.equal(noisy[:, :FIRST], clean[:, :FIRST])
    assert not torch.isclose(noisy[:, FIRST:], clean[:, FIRST:]).all()


@pytest.mark.parametrize("name", ["flow", "self_flow", "diffusion_forcing"])
def test_given_noise_is_a_time_of_the_given_tokens_of_the_student_alone(name: str) -> None:
    """One level, two, and one for each token: x is (1 - s) x0 + s eps there, and the rest is as without."""
    noisy = replace(GIVEN, given_noise=0.2)
    inputs, losses, times = [], [], []
    for config in (GIVEN, noisy):
        objective = made(registry.load("method", name), config)
        needs = objective.needs()
        sample, pupil = batch(needs), student(needs, config)
        drawn = draws_of(objective, STREAMS, sample)
        seen = Changed(pupil.model, pupil.ema, pupil.config)
        losses.append(objective.loss(pupil, sample, drawn).total)
        objective.loss(seen, sample, drawn)
        inputs.append(seen.inputs)
        times.append(drawn.times.with_given(torch.arange(16) < FIRST).per_token_levels())
    s = 0.2 * STREAMS.uniform("given_noise", sample.index)[:, None, None, None]
    first, x0 = np.s_[:, :, :4], sample.x0
    assert torch.equal(inputs[1][0][first], (1 - s) * x0[first] + s * drawn.noise[first])
    assert torch.equal(times[1][:, :FIRST], s[:, :, 0, 0].expand(-1, FIRST)) and not times[0][:, :FIRST].any()
    assert torch.equal(times[1][:, FIRST:], times[0][:, FIRST:]) and s.min() > 0 and s.max() < 0.2
    assert all(torch.equal(one[first], x0[first]) for one in (*inputs[0], *inputs[1][1:]))
    assert torch.equal(inputs[1][0][:, :, 4:], inputs[0][0][:, :, 4:])
    # The network is told the time of its first tokens, so the loss of the others changes.
    assert losses[0] != losses[1]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_given_tokens_come_out_of_every_sampler_unchanged(sampler: str) -> None:
    spec = EvalSpec(sampler=sampler, sampler_steps=3, guidance=2.0)  # pyright: ignore[reportArgumentType]
    clean = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    seen = []
    net = network(0, GIVEN)
    net.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    index = np.arange(4)
    sampling = Sampling(spec, (3, 8, 8), 5, CPU, given=lambda i: clean[i])
    x = draw(net, sampling, index, torch.zeros(4, dtype=torch.int64))
    assert torch.equal(x[:, :, :4], clean[:, :, :4]) and not torch.isclose(x[:, :, 4:], clean[:, :, 4:]).any()
    assert seen and all(torch.equal(one[:4, :, :4], clean[:, :, :4]) for one in seen)


def test_methods_that_cannot_have_given_tokens_are_refused_by_name() -> None:
    assert [name for name in registry.METHODS if not registry.load("method", name).masks_given] == sorted(
        REFUSED, key=list(registry.METHODS).index
    )
    assert not Method.masks_given
    assert configured(Flow).needs() == Needs()
