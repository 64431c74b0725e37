"""ReDi: its losses and guidance against released code, joint sampling, and commands that reject it.

The expected numbers are those of zelaki/ReDi 58c65a8 on a CPU, with weights and draws of `filled`:
`SiT(input_size=8, patch_size=2, in_channels=6, hidden_size=16, depth=4, num_heads=2, num_classes=4,
learn_sigma=False).eval()` of models.py, and `create_transport("Linear", "velocity").training_losses(v, x,
dict(y=y), lam=lam)` of transport/, where x is joined as in train_redi.py, `th.rand` returns 1 - t and
`th.randn_like` the noise. Its time runs from noise to data, so v is `lambda x, t, y: -net(x, 1 - t, y)`.
torchdiffeq, which these calls do not use, is an empty module. Samples are four Euler steps of
`net.forward_with_cfg`, with `net.forward` replaced by v.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.backbone.network import Prediction
from harness.backbone.sit import SiT, SiTConfig
from harness.backbone.sizes import Size
from harness.backbone.times import Times
from harness.config.evaluation_spec import EvalSpec
from harness.errors import UserError
from harness.exchange.convert import Weights, to_released
from harness.flow.batch import Batch, Draw, View
from harness.flow.samplers import euler, velocity_field
from harness.flow.sampling import Sampling, draw
from harness.flow.student import Student
from harness.runtime.random_streams import Streams
from methods.common.method import Needs
from methods.redi import ReDi, upsampled
from tests.support.commands import flowrace
from tests.support.conformance import CONFIG, STREAMS, batch, network
from tests.support.filled import fill, filled
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


@pytest.fixture(scope="module")
def released() -> SiT:
    net = SiT(SiTConfig(Size(4, 16, 2), 2, (4, 8, 8), 4, features=2))
    fill(net)
    return net.eval()


@torch.no_grad()
@pytest.mark.parametrize(("weight", "expected"), [(1.0, 2.3443899154663086), (0.6, 1.8429111242294312)])
def test_loss_equals_that_of_released_code(released: SiT, weight: float, expected: float) -> None:
    method = ReDi.build(ReDi.Config(rank=2, feature_weight=weight), released.config, encoder_dims=(2,))
    x0, y, view = filled("x", (2, 4, 8, 8)), torch.tensor([1, 3]), View(filled("components", (2, 16, 2)))
    noise = {"feature_noise": 3 * filled("feature_noise", (2, 2, 8, 8))}
    times = Times.per_sample(torch.tensor([0.3, 0.8]))
    drawn = Draw(3 * filled("eps", (2, 4, 8, 8)), times, extra=noise)
    losses = method.loss(
        Student(released, None, released.config), Batch(np.arange(2), x0, y, y, views=(view,)), drawn
    )
    assert losses.total.item() == pytest.approx(expected, abs=1e-6)


@torch.no_grad()
def test_guided_samples_equal_those_of_released_code(released: SiT) -> None:
    """The rule that guides the sample and its features (`--cfg-vae False`)."""
    z = torch.cat([3 * filled("z", (2, 4, 8, 8)), 3 * filled("z/features", (2, 2, 8, 8))], dim=1)
    x = euler(velocity_field(released, torch.tensor([1, 3]), null=4, scale=1.5), z, 4)
    first = [0.486034631729126, 0.320227712392807, -1.0030534267425537, 0.899448037147522]
    assert x.flatten()[:4].tolist() == pytest.approx(first, abs=1e-5)
    assert x[:, :4].sum().item() == pytest.approx(31.789560317993164, abs=1e-3)
    assert x.sum().item() == pytest.approx(-17.8848876953125, abs=1e-3)


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
