"""Self-Transcendence: both phases against released code and closed forms, and a run that a first run teaches.

The expected numbers are those of csslc/Self-Transcendence 42fde5d on a CPU, retyped from a stored copy, with
weights and draws of `filled`: `vae_diffloss()(net, x, (0.4, 0.7), dict(y=y))` and `selftrans_Loss()(frozen,
net, x, (0.4, 0.7), y, 3, 2, scale, dict(y=y))` of loss.py with null label 4 in place of 1000, where
`torch.rand` and `torch.randn_like` return t and eps. Networks are `SiT(input_size=8, patch_size=2,
in_channels=3, hidden_size=16, decoder_hidden_size=16, depth=4, num_heads=2, num_classes=4, encoder_depth=2,
projector_dim=8, fused_attn=True, qk_norm=False).eval()` of models/sit_vaeloss_model.py and
models/sit_selftrans_model.py. The rows of `projectors_final.linear` are in the release's order of patches.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.backbone.sit import SiT, SiTConfig
from harness.backbone.sizes import Size
from harness.backbone.times import Times
from harness.config.backbone_spec import BackboneSpec
from harness.costs.flops import count_spec
from harness.data.pin import pinned
from harness.errors import UserError
from harness.flow.batch import Batch, Draw
from harness.flow.path import interpolate
from harness.flow.student import Student
from harness.runtime.random_streams import Streams
from harness.train.run_encoder import RunEncoder
from methods.self_transcendence import SelfTranscendence
from tests.support.filled import fill, filled
from tests.support.runs import everything, tiny, trained
from tests.support.small_methods import CONFIG, batch, build, f64, student

PHASE = ("method.name=self_transcendence", "method.projector_width=16")
SHORT = (
    *PHASE,
    "train.steps=4",
    "eval.every=4",
    "train.checkpoint_every=2",
    "eval.metrics=['loss:held_out']",
)
FROZEN = {"encoder": {"name": "run:0123456789ab"}}


BACKBONE = SiTConfig(Size(4, 16, 2), 2, (3, 8, 8), 4)
LABELS = torch.tensor([1, 3])


def inputs(*times: float) -> tuple[Batch, Draw]:
    shape = (2, 3, 8, 8)
    given = Batch(np.arange(2), filled("x", shape), LABELS, LABELS)
    return given, Draw(3 * filled("eps", shape), Times.per_sample(torch.tensor(times)))


def released(**settings: object) -> tuple[SelfTranscendence, Student]:
    config, net = SelfTranscendence.Config(layer=2, projector_width=8, **settings), SiT(BACKBONE)
    method = SelfTranscendence.build(config, BACKBONE, encoder_dims=(16,))
    fill(net)
    fill(method)
    return method, Student(net, None, BACKBONE)


@torch.no_grad()
def test_losses_of_the_first_phase_equal_those_of_released_code() -> None:
    """With both samples inside the interval; the released target is the velocity."""
    method, pupil = released(latent_target="velocity")
    losses = method.loss(pupil, *inputs(0.5, 0.6))
    assert losses.parts["flow"].item() == pytest.approx(1.3074514865875244, abs=1e-6)
    assert losses.parts["align"].item() == pytest.approx(4.338921070098877, abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("scale", "expected"), [(30.0, 782.0388793945312), (1.0, 1.6627744436264038)])
def test_losses_of_the_second_phase_equal_those_of_released_code(scale: float, expected: float) -> None:
    """The frozen network has other weights, and its third block is the target."""
    (method, pupil), (given, draw), teacher = released(**FROZEN), inputs(0.5, 0.6), SiT(BACKBONE)
    fill(teacher, "frozen.{}".format)
    frozen = RunEncoder.__new__(RunEncoder)
    frozen._network, frozen.layer, frozen._null = teacher, 3, 4
    given = replace(given, views=(frozen.guided_view(given, draw, scale),))
    losses = method.loss(pupil, given, draw)
    assert losses.parts["flow"].item() == pytest.approx(1.3074514865875244, abs=1e-6)
    assert losses.parts["align"].item() == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_mask_of_released_code_scales_the_mean_over_all_samples() -> None:
    """The disputed choice: with one of two samples inside, the release halves the mean over both."""
    method, pupil = released(latent_target="velocity")
    widest, _ = released(latent_target="velocity", time_low=0.0, time_high=1.0)
    both = widest.loss(pupil, *inputs(0.5, 0.8)).parts["align"].item()
    inside = method.loss(pupil, *inputs(0.5, 0.8)).parts["align"].item()
    assert both / 2 == pytest.approx(2.1691341400146484, abs=1e-5)
    assert inside != pytest.approx(both / 2, abs=0.01)


@pytest.mark.parametrize("target", ["x0", "velocity"])
def test_first_phase_predicts_the_patches_of_samples_inside_the_interval(target: str) -> None:
    method = build(SelfTranscendence, layer=2, projector_width=20, latent_target=target)
    pupil, given = student(), batch(32)
    draw = method.draw(Streams(0), given)
    x = interpolate(given.x0, draw.noise, draw.times, CONFIG)
    hidden = method.projector(pupil(x, draw.times, given.y, taps=(2,)).hidden[2])
    z = f64(hidden)
    normed = (z - z.mean(-1, keepdims=True)) / (z.var(-1, keepdims=True) + 1e-6) ** 0.5
    predicted = normed @ f64(method.to_patch.weight).T + f64(method.to_patch.bias)
    whole = f64(given.x0 if target == "x0" else draw.noise - given.x0)
    patches = whole.reshape(32, 3, 4, 2, 4, 2).transpose(0, 2, 4, 1, 3, 5).reshape(32, 16, 12)
    t = f64(draw.times.levels)[:, 0]
    inside = (t >= 0.4) & (t <= 0.7)
    assert 0 < inside.sum() < 32
    losses = method.loss(pupil, given, draw)
    expected = (((predicted - patches) ** 2).mean((1, 2)) * inside).mean()
    assert losses.parts["align"].item() == pytest.approx(expected, rel=1e-4)
    assert losses.total.item() == pytest.approx(losses.parts["flow"].item() + 0.5 * expected, rel=1e-5)


def test_second_phase_predicts_the_features_of_the_frozen_run() -> None:
    method = build(SelfTranscendence, layer=2, projector_width=20, time_low=0.0, time_high=1.0, **FROZEN)
    assert method.needs().guided == 30 and not hasattr(method, "to_patch")
    pupil, given = student(), batch(8)
    draw = method.draw(Streams(0), given)
    x = interpolate(given.x0, draw.noise, draw.times, CONFIG)
    projected = f64(method.projector(pupil(x, draw.times, given.y, taps=(2,)).hidden[2]))
    expected = ((projected - f64(given.views[0].tokens)) ** 2).mean()
    assert method.loss(pupil, given, draw).parts["align"].item() == pytest.approx(expected, rel=1e-5)
    late = replace(given, step=100_001)
    ended = SelfTranscendence.Config(**FROZEN).resolved(BackboneSpec(size="B"))
    assert ended.weight(late.step) == 0 < ended.weight(100_000)


def test_layers_of_b_are_those_of_the_released_scripts() -> None:
    phases = [SelfTranscendence.Config(**more).resolved(BackboneSpec(size="B")) for more in ({}, FROZEN)]
    assert [phase.layer for phase in phases] == [2, 6]
    assert [phase.schedule.until for phase in phases] == [None, 100_000]


@pytest.mark.slow
def test_first_run_teaches_a_second_one_that_resumes_to_the_same_bits(tmp_path: Path) -> None:
    first = trained(tiny(*SHORT), tmp_path / "first")
    spec = pinned(tiny(*SHORT, f"method.encoder.name=run:{first.path}?layer=3", "method.guidance=5.0"))
    second = trained(spec, tmp_path / "second")
    assert second.status == "done" and spec.method.encoder.content
    assert count_spec(spec).per_step["encoder"] == 2 * 8 * second.environment[0]["encoders"][0]["flops"]
    whole = everything(second)
    (second.path / "done").unlink()
    (second.path / "checkpoints" / "step-00000004.safetensors").unlink()
    assert everything(trained(spec, tmp_path / "second")) == whole


def test_other_encoders_and_intervals_are_rejected() -> None:
    with pytest.raises(UserError, match=r"method.encoder.name = random:small: is no flowrace run"):
        tiny(*PHASE, "method.encoder.name=random:small")
    with pytest.raises(UserError, match=r"method.time_low = 0.8: is above time_high = 0.7"):
        tiny(*PHASE, "method.time_low=0.8")
