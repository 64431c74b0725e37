"""HASTE: its attention term compared with numpy, its heads, layers and stop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.config.backbone_spec import BackboneSpec
from harness.flow.batch import View
from harness.flow.path import interpolate
from harness.runtime.random_streams import Streams
from methods.common.method import Schedule
from methods.haste import Haste, attention_loss
from methods.repa import Repa
from tests.support.small_methods import CONFIG, batch, build, student

HEADS = 3


def maps(layers: int, size: int = 8, tokens: int = CONFIG.tokens) -> torch.Tensor:
    draw = Streams(0).normal("maps", np.arange(size), (layers, HEADS, tokens, tokens))
    return (2 * draw).softmax(dim=-1)


def given_with(target: torch.Tensor):
    given = batch(8)
    return given.__class__(
        given.index, given.x0, given.y, given.label, 1, (View(given.views[0].tokens, attention=target),)
    )


def test_attention_term_equals_its_formula() -> None:
    """It is the cross-entropy of the student's softmax with the encoder's rows, for both heads of the student
    and two of the encoder's three."""
    method, target = build(Haste, coefficient=0.0, layers=(2, 4)), maps(2)
    given, pupil, projections = given_with(target), student(), []
    for layer in (2, 4):
        pupil.model.blocks[layer - 1].attn.qkv.register_forward_hook(
            lambda _, __, out: projections.append(out)
        )
    losses = method.loss(pupil, given, method.draw(Streams(0), given))
    expected, width, heads = [], CONFIG.size.width, CONFIG.size.heads
    for qkv, rows in zip(projections, target.double().numpy().transpose(1, 0, 2, 3, 4), strict=True):
        q, k = (
            part.reshape(8, -1, heads, width // heads).transpose(0, 2, 1, 3)
            for part in np.split(qkv.detach().double().numpy(), 3, axis=-1)[:2]
        )
        logits = np.einsum("bnid,bnjd->bnij", q, k) / np.sqrt(width // heads)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        expected.append(-(rows[:, :heads] * log_p).sum(-1).mean())
    assert losses.parts["align"].item() == pytest.approx(0.5 * np.mean(expected), rel=1e-5)
    assert losses.total.item() == pytest.approx(
        (losses.parts["flow"] + losses.parts["align"]).item(), rel=1e-6
    )


def test_terms_are_summed_with_their_weights() -> None:
    """The sum is 0.5 L_REPA + 0.5 L_attn, and L_REPA equals REPA's bit for bit."""
    given = given_with(maps(3))
    both, attention, features = (
        build(Haste, layer=1, layers=(1, 2, 3), **settings)
        for settings in ({}, {"coefficient": 0.0}, {"attention_weight": 0.0})
    )
    align = [
        m.loss(student(), given, m.draw(Streams(0), given)).parts["align"].item()
        for m in (both, attention, features)
    ]
    assert align[0] == pytest.approx(align[1] + align[2], rel=1e-6)
    repa = build(Repa, layer=1)
    assert repa.loss(student(), given, repa.draw(Streams(0), given)).parts["align"].item() * 0.5 == align[2]


def test_attention_loss_is_least_when_the_maps_are_equal() -> None:
    """By Gibbs' inequality it then equals the encoder's entropy, has no gradient, and is larger elsewhere."""
    q, k = (Streams(0).normal(name, np.arange(4), (2, 6, 8)).double().requires_grad_() for name in "qk")
    with torch.no_grad():
        maps_of_qk = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1)[:, None]
    least = attention_loss([(q, k)], maps_of_qk)
    assert least.item() == pytest.approx(-(maps_of_qk * maps_of_qk.log()).sum(-1).mean().item(), rel=1e-6)
    assert torch.autograd.grad(least, q)[0].abs().max() < 1e-6
    assert attention_loss([(q + 0.3, k)], maps_of_qk) > least
    assert attention_loss([(q, -k)], maps_of_qk) > least


@pytest.mark.parametrize(
    ("size", "layers", "stop"),
    [
        ("B", (5, 6, 7, 8), 100_000),
        ("L", (5, 6, 7, 8), 250_000),
        ("XL", (5, 6, 7, 8), 250_000),
        ("nano", (1, 2, 3, 4), None),
        ("pico", (1, 2, 3), None),
    ],
)
def test_default_layers_and_stop_are_the_published_ones(
    size: str, layers: tuple[int, ...], stop: int | None
) -> None:
    config = Haste.Config().resolved(BackboneSpec(size=size))
    assert (config.layers, config.schedule.until) == (layers, stop)
    assert (config.coefficient, config.attention_weight) == (0.5, 0.5)
    assert config.needs().attention == len(layers) and config.needs().heads == layers
    custom = Haste.Config(schedule=Schedule(until=7)).resolved(BackboneSpec(size=size))
    assert custom.schedule.until == 7


@pytest.mark.parametrize("layers", [(3, 2), (2, 2), (0, 1), (4, 5)])
def test_config_rejects_invalid_layers(layers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^layers = "):
        Haste.Config(layers=layers).resolved(BackboneSpec(size="pico"))


def test_requesting_queries_and_keys_does_not_change_the_velocity() -> None:
    given, pupil = batch(8), student()
    draw = build(Haste, layers=(1, 3)).draw(Streams(0), given)
    x = interpolate(given.x0, draw.noise, draw.times, CONFIG)
    plain, with_heads = (pupil(x, draw.times, given.y, heads=heads) for heads in ((), (1, 3)))
    assert torch.equal(plain.velocity, with_heads.velocity)
    assert not plain.heads and set(with_heads.heads) == {1, 3}
