"""REG's extra token: its path and loss compared with numpy, its place in the network, and joint sampling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.backbone.sit import Prediction, SiT
from harness.backbone.times import Times
from harness.config.backbone_spec import BackboneSpec
from harness.config.evaluation_spec import EvalSpec
from harness.flow.batch import Batch, View
from harness.runtime.random_streams import Streams
from methods.reg import Reg
from methods.repa import Repa
from tests.support.conformance import CONFIG, DIM, network, student, view
from tests.support.sampling import draw_samples
from tests.support.small_methods import batch

NEEDS = Reg.Config(layer=2).needs()
CPU = torch.device("cpu")


def made(**settings) -> Reg:
    config = Reg.Config(layer=2, **settings).resolved(BackboneSpec(size="pico"))
    method = Reg.build(config, replace(CONFIG, extra=DIM), encoder_dims=(DIM,))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return method


def given() -> Batch:
    return replace(batch(8), views=(view("encoder", np.arange(8), NEEDS),))


def test_loss_equals_its_formula() -> None:
    method, pupil, inputs = made(projector_width=16), student(NEEDS), {}
    data = given()
    draw = method.draw(Streams(0), data)
    pupil.model.extra_embedder.register_forward_pre_hook(lambda _, args: inputs.update(token=args[0]))
    losses = method.loss(pupil, data, draw)
    c, eps, t = (
        x.double().numpy() for x in (data.views[0].summary, draw.extra["token_noise"], draw.times.levels)
    )
    np.testing.assert_allclose(inputs["token"], (1 - t) * c + t * eps, atol=1e-6)
    x = (1 - t[..., None, None]) * data.x0.double().numpy() + t[..., None, None] * draw.noise.double().numpy()
    prediction = pupil(torch.from_numpy(x).float(), draw.times, data.y, taps=(2,), extra=inputs["token"])
    token = np.mean((prediction.extra.detach().double().numpy() - (eps - c)) ** 2)
    assert losses.parts["token"].item() == pytest.approx(token, rel=1e-5)
    hidden, target = (
        prediction.hidden[2],
        np.concatenate([c[:, None], data.views[0].tokens.double().numpy()], axis=1),
    )
    a = method.projectors[0](hidden).detach().double().numpy()
    assert a.shape == target.shape == (8, 1 + CONFIG.tokens, DIM)
    cosine = (a * target).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(target, axis=-1)
    assert losses.parts["align"].item() == pytest.approx(-cosine.mean(), abs=1e-6)
    total = losses.parts["flow"] + 0.03 * losses.parts["token"] + 0.5 * losses.parts["align"]
    assert losses.total.item() == pytest.approx(total.item(), rel=1e-6)


def test_reg_equals_repa_when_the_token_has_no_weight() -> None:
    config = Reg.Config(layer=2, token_weight=0.0).resolved(BackboneSpec(size="pico"))
    assert config.needs() == Repa.Config(layer=2).needs()
    methods = [
        cls.build(c, CONFIG, encoder_dims=(DIM,)) for cls, c in ((Reg, config), (Repa, Repa.Config(layer=2)))
    ]
    methods[1].load_state_dict(methods[0].state_dict())
    totals = [m.loss(student(m.needs()), given(), m.draw(Streams(0), given())).total for m in methods]
    assert torch.equal(*totals)


def test_token_and_image_influence_each_other() -> None:
    """Without the token, the network is the one that has no parameters for it."""
    net = network(0, replace(CONFIG, extra=DIM))
    x, y, times = (
        torch.randn(2, *CONFIG.shape),
        torch.zeros(2, dtype=torch.int64),
        Times.per_sample(torch.full((2,), 0.4)),
    )
    token = torch.randn(2, DIM)
    a, b = net(x, times, y, extra=token), net(x, times, y, extra=token + 1)
    assert not torch.allclose(a.velocity, b.velocity) and a.velocity.shape == x.shape
    assert not torch.allclose(a.extra, net(x + 1, times, y, extra=token).extra)
    bare = net(x, times, y)
    assert bare.extra is None and bare.velocity.shape == x.shape
    state = {n: t for n, t in net.state_dict().items() if "extra" not in n}
    plain = SiT(CONFIG)
    plain.load_state_dict(state)
    assert torch.equal(bare.velocity, plain(x, times, y).velocity)


class Points(nn.Module):
    """The exact velocity for a single image and token, v = (z - z0) / t, whose paths are straight."""

    config = replace(CONFIG, extra=DIM)
    image, token = 0.25, -3.0

    def forward(self, x: Tensor, times: Times, y: Tensor, *, extra: Tensor | None = None) -> Prediction:
        t = times.levels
        self.seen = (x, extra, t)
        return Prediction((x - self.image) / t[..., None, None], {}, (extra - self.token) / t)


@pytest.mark.parametrize("guidance", [1.0, 1.5])
@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_sampler_integrates_image_and_token_together(sampler: str, guidance: float) -> None:
    model, spec = (
        Points(),
        EvalSpec(samples=6, sampler=sampler, sampler_steps=5, guidance=guidance, batch_size=4),
    )
    images = draw_samples(model, spec, CONFIG.shape, 5, CPU)
    assert images.shape == (6, *CONFIG.shape) and (images == round((0.25 + 1) * 127.5)).all()
    _, extra, t = model.seen
    # Before the last step z = z0 + t eps, where eps is the token's noise.
    if sampler == "euler":
        noise = Streams(0).normal("eval_noise/extra", np.arange(4, 6), (DIM,))
        torch.testing.assert_close(extra[:2], -3.0 + t[:2] * (noise + 3.0), atol=1e-5, rtol=1e-5)


def test_image_has_the_noise_that_all_methods_share() -> None:
    class Still(Points):
        def forward(self, x: Tensor, times: Times, y: Tensor, *, extra: Tensor | None = None) -> Prediction:
            return Prediction(torch.zeros_like(x), {}, None if extra is None else torch.zeros_like(extra))

    plain = Still()
    plain.config = CONFIG
    spec = EvalSpec(samples=4, sampler="euler_maruyama", sampler_steps=4)
    drawn = [draw_samples(m, spec, CONFIG.shape, 5, CPU) for m in (Still(), plain)]
    assert torch.equal(*drawn)


def test_schedule_stops_the_alignment_but_keeps_the_token() -> None:
    config = Reg.Config(layer=2, schedule={"until": 3})
    assert config.encodes(3) and config.encodes(4) and config.weight(4) == 0
    assert not Reg.Config(layer=2, token_weight=0.0, schedule={"until": 3}).encodes(4)


def test_loss_does_not_change_the_views_in_place() -> None:
    data = given()
    before = View(*(None if t is None else t.clone() for t in data.views[0]))
    method = made(projector_width=16)
    method.loss(student(NEEDS), data, method.draw(Streams(0), data))
    assert torch.equal(before.tokens, data.views[0].tokens) and torch.equal(
        before.summary, data.views[0].summary
    )
