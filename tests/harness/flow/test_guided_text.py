"""Sampling with guidance from texts equals plain loops that compute everything for every sample."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.backbone.condition import Text
from harness.backbone.mmdit import MMDiT
from harness.backbone.times import Times
from harness.config.evaluation_spec import EvalSpec
from harness.flow.samplers import euler, heun, velocity_field
from harness.flow.sampling import Sampling, draw_pixels
from tests.support.text import SMALL, network, texts

pytestmark = pytest.mark.usefixtures("without_gradients")
SCALE, LOW, HIGH = 2.5, 0.2, 0.7
CPU = torch.device("cpu")


@pytest.fixture
def without_gradients():
    with torch.no_grad():
        yield


def noise(size: int) -> Tensor:
    return torch.randn(size, *SMALL.shape, generator=torch.Generator().manual_seed(3))


def plain_velocity(model: MMDiT, x: Tensor, t: float, y: Text, null: Text) -> Tensor:
    """Two passes, each with a time and a text for every sample."""
    times = Times.per_sample(torch.full((len(x),), t))
    conditional = model(x.float(), times, y).velocity
    if not LOW <= t <= HIGH:
        return conditional.double()
    repeated = Text(
        null.features.repeat(len(x), 1, 1), None if null.mask is None else null.mask.repeat(len(x), 1)
    )
    free = model(x.float(), times, repeated).velocity
    return (free + SCALE * (conditional - free)).double()


def prompts(kind: str, *, masked: bool) -> tuple[Text, Text]:
    """Return the texts of six samples, and the empty caption."""
    different, null = texts(6, masked=masked), texts(1, seed=9, masked=masked)
    rows = {"different": [0, 1, 2, 3, 4, 5], "one": [3] * 6, "two": [1, 4, 4, 1, 1, 4]}[kind]
    return different[rows], null


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["different", "one", "two"])
def test_guided_samples_equal_those_of_a_plain_loop(kind: str, masked: bool) -> None:
    model, z = network(), noise(6)
    y, null = prompts(kind, masked=masked)
    field = velocity_field(model, y, null=null, scale=SCALE, low=LOW, high=HIGH)
    x = z.double()
    for t, after in itertools.pairwise(torch.linspace(1, 0, 6, dtype=torch.float64).tolist()):
        x = x + (after - t) * plain_velocity(model, x, t, y, null)
    torch.testing.assert_close(euler(field, z, 5), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("text_time", ["mean", "clean"])
def test_second_order_sampler_equals_a_plain_loop(text_time: str) -> None:
    model, z = network(replace(SMALL, text_time=text_time)), noise(4)
    y, null = texts(4), texts(1, seed=9)
    field = velocity_field(model, y, null=null, scale=SCALE, low=LOW, high=HIGH)
    x = z.double()
    for t, after in itertools.pairwise(torch.linspace(1, 0, 5, dtype=torch.float64).tolist()):
        slope = plain_velocity(model, x, t, y, null)
        if after > 0:
            slope = (slope + plain_velocity(model, x + (after - t) * slope, after, y, null)) / 2
        x = x + (after - t) * slope
    torch.testing.assert_close(heun(field, z, 4), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("kind", "rows"), [("different", 7), ("one", 2), ("two", 3)])
def test_first_block_projects_each_text_once(kind: str, rows: int) -> None:
    """Six samples with six, one or two captions, and the empty caption of all."""
    model, projected, embedded = network(), [], []
    attn = model.blocks[0].context_block.attn
    attn.qkv.register_forward_hook(lambda _, i, o: projected.append(len(o)))
    model.context_embedder.register_forward_hook(lambda _, i, o: embedded.append(len(o)))
    field = velocity_field(model, *prompts(kind, masked=False)[:1], null=texts(1, seed=9), scale=SCALE)
    euler(field, noise(6), 4)
    assert projected == [rows] * 4 and embedded == [rows]


def test_without_guidance_the_empty_caption_is_not_computed() -> None:
    model, projected = network(), []
    model.blocks[0].context_block.attn.qkv.register_forward_hook(lambda _, i, o: projected.append(len(o)))
    euler(velocity_field(model, texts(6), null=texts(1, seed=9)), noise(6), 2)
    assert projected == [6, 6]


def test_guided_velocity_passes_gradients_to_the_sample() -> None:
    """Embedded texts are kept only between passes without gradients."""
    model, z = network(), noise(2).requires_grad_()
    field = velocity_field(model, texts(2), null=texts(1, seed=9), scale=SCALE)
    with torch.enable_grad():
        field(z, 0.5).square().sum().backward()
    assert z.grad.any() and model.context_embedder.weight.grad.any()


@pytest.mark.parametrize("extra", [0, 6])
def test_drawn_pixels_depend_on_prompt_and_index(extra: int) -> None:
    model, spec = (
        network(replace(SMALL, extra=extra)),
        EvalSpec(sampler="euler", sampler_steps=2, guidance=2.0),
    )
    index = np.arange(4)

    def drawn(y: Text, index: np.ndarray = index) -> Tensor:
        return draw_pixels(model, Sampling(spec, SMALL.shape, texts(1, seed=9), CPU), index, y)

    pixels = drawn(texts(4))
    assert pixels.shape == (4, *SMALL.shape) and torch.equal(pixels, drawn(texts(4)))
    assert (pixels[:2].int() - drawn(texts(4)[:2], index[:2]).int()).abs().max() <= 1
    for other in (drawn(texts(4, seed=1)), drawn(texts(4), index + 4)):
        assert not torch.equal(pixels, other)


def test_null_condition_of_another_kind_is_refused() -> None:
    labels = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(TypeError, match="null condition of Text cannot be int"):
        velocity_field(network(), texts(2), null=5)
    with pytest.raises(TypeError, match="null condition of Tensor cannot be Text"):
        velocity_field(network(), labels, null=texts(1))
