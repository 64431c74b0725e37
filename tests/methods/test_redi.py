"""ReDi: its losses in closed form, joint sampling of sample and features, and commands that reject it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.backbone.network import Prediction
from harness.backbone.times import Times
from harness.config.evaluation_spec import EvalSpec
from harness.errors import UserError
from harness.exchange.convert import Weights, to_released
from harness.flow.batch import View
from harness.flow.sampling import Sampling, draw
from harness.flow.student import Student
from harness.runtime.random_streams import Streams
from methods.common.method import Needs
from methods.redi import ReDi, upsampled
from tests.support.commands import flowrace
from tests.support.conformance import CONFIG, STREAMS, batch, network
from tests.support.runs import tiny, trained
from tests.support.small_methods import f64

WIDE = replace(CONFIG, features=2)
CPU = torch.device("cpu")


def given():
    one = batch(Needs())
    return replace(one, views=(View(STREAMS.normal("components", one.index, (CONFIG.tokens, 2))),))


def test_losses_are_those_of_both_velocities() -> None:
    """The release's `loss_vae + lam * loss_dino`, with features upsampled by `interpolate`, bilinear."""
    method = ReDi.build(ReDi.Config(rank=2, feature_weight=0.6), WIDE, encoder_dims=(2,))
    one = given()
    drawn, net = method.draw(Streams(0), one), network(0, WIDE)
    maps = one.views[0].tokens.transpose(1, 2).reshape(8, 2, 4, 4)
    z, noise = F.interpolate(maps, (8, 8), mode="bilinear"), drawn.extra["feature_noise"]
    t = drawn.times.levels[:, :, None, None]
    x = torch.cat([(1 - t) * one.x0 + t * drawn.noise, (1 - t) * z + t * noise], dim=1)
    v = f64(net(x, drawn.times, one.y).velocity)
    flow = ((v[:, :3] - f64(drawn.noise - one.x0)) ** 2).mean()
    features = ((v[:, 3:] - f64(noise - z)) ** 2).mean()
    losses = method.loss(Student(net, None, WIDE), one, drawn)
    assert losses.parts["flow"].item() == pytest.approx(flow, rel=1e-5)
    assert losses.parts["features"].item() == pytest.approx(features, rel=1e-5)
    assert losses.total.item() == pytest.approx(flow + 0.6 * features, rel=1e-5)
    assert torch.equal(upsampled(one.views[0].tokens, (4, 4), (8, 8)), z)


class Points(nn.Module):
    """The exact velocity for a single sample and its features, whose paths are straight."""

    config = WIDE

    def forward(self, x: Tensor, times: Times, y: Tensor) -> Prediction:
        self.seen, t = x, times.levels[..., None, None]
        target = torch.cat([torch.full_like(x[:, :3], 0.25), torch.full_like(x[:, 3:], -3.0)], dim=1)
        return Prediction((x - target) / t, {})


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_sampler_integrates_both_and_returns_the_sample(guidance: float) -> None:
    model, index = Points(), np.arange(2)
    spec = EvalSpec(samples=2, sampler="euler", sampler_steps=1, guidance=guidance)
    x = draw(model, Sampling(spec, CONFIG.shape, 5, CPU), index, torch.tensor([1, 2]))
    assert x.shape == (2, *CONFIG.shape) and torch.allclose(x, torch.full_like(x, 0.25), atol=1e-5)
    noise = [
        Streams(0).normal(name, index, (n, 8, 8))
        for name, n in (("eval_noise", 3), ("eval_noise/features", 2))
    ]
    assert torch.equal(model.seen[:2], torch.cat(noise, dim=1))


def test_components_are_those_of_the_named_encoder() -> None:
    config = ReDi.Config(encoder={"name": "local:small"}, rank=3)
    (encoder,) = config.needs().encoders
    assert encoder.name == "pca:3:local:small" and config.needs().features == 3 and config.encodes(10**9)
    assert ReDi.Config(feature_weight=0.0).needs() == Needs() and not config.scheduled


def test_layouts_have_no_place_for_further_channels() -> None:
    with pytest.raises(UserError, match="2 further channels, as method redi adds"):
        to_released(Weights(network(0, WIDE).state_dict()), WIDE, "sit")


WORDS = ("method.name=redi", "method.encoder.name=random:tiny", "method.rank=3")


def test_validation_loss_is_rejected() -> None:
    with pytest.raises(UserError, match="does not support redi, whose network is given an encoder's output"):
        tiny(*WORDS, "eval.metrics=['loss:held_out']")


@pytest.mark.slow
@pytest.mark.usefixtures("quick_networks")
def test_run_samples_images_and_is_not_probed(tmp_path: Path) -> None:
    record = trained(tiny(*WORDS, "train.steps=4", "eval.every=4"), tmp_path)
    assert record.status == "done" and record.environment[0]["encoders"][0]["name"] == "pca:3:random:tiny"
    assert set(record.of("train")[-1]["losses"]) == {"flow", "features"}
    file = tmp_path / "samples.npz"
    assert flowrace("sample", str(record.path), "-n", "4", "--output", str(file)).exit_code == 0
    assert np.load(file)["arr_0"].shape[:3] == (4, 8, 8)
    probed = flowrace("probe", str(record.path))
    assert probed.exit_code and "has an encoder's features next to each sample" in str(probed.exception)
