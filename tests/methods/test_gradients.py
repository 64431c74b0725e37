"""The separate gradients of flow loss and alignment: a linear model in closed form, and torch.func for every
method."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from harness.backbone.config import BackboneConfig
from harness.backbone.network import Prediction
from harness.backbone.times import Times
from harness.config import registry
from harness.flow.batch import Batch, Draw
from harness.flow.gradients import describe, separate_gradients
from harness.flow.method import Losses, Setting, TrainingMethod
from harness.flow.student import Student
from methods.flow import Flow
from methods.repa import Repa
from tests.support.conformance import CONFIG, OF_TEXT, STREAMS, batch, made, student

slow = pytest.mark.slow


class Linear(TrainingMethod):
    """L = mean (x W - u)^2 + c mean (x W - z)^2. Its loss also changes a buffer and torch's generator."""

    Config = Flow.Config

    def __init__(self, c: float, u: Tensor, z: Tensor) -> None:
        super().__init__(self.Config(), Setting(CONFIG))
        self.c, self.u, self.z = c, u, z
        self.register_buffer("passes", torch.zeros(()))

    def loss(self, student: Student, batch: Batch, draw: Draw) -> Losses:
        self.passes += 1
        torch.rand(3)
        v = student.model(batch.x0)
        flow, align = (v - self.u).square().mean(), (v - self.z).square().mean()
        return Losses(flow + self.c * align, {"flow": flow, "align": align})


def test_gradients_of_a_linear_model_equal_the_closed_form() -> None:
    """dL_gen/dW = 2/(nk) X'(XW - U) and dL_aux/dW = 2c/(nk) X'(XW - Z)."""
    x, u, z = (STREAMS.normal(name, range(6), (3,)) for name in ("x", "u", "z"))
    net = nn.Linear(3, 3, bias=False)
    given = replace(batch(made(Flow).needs(), 6), x0=x)
    method, state = Linear(0.3, u, z), torch.get_rng_state()
    found = separate_gradients(method, Student(net, None, CONFIG), given, None)
    v = x @ net.weight.T.detach()
    scale = 2 / 18
    torch.testing.assert_close(found.flow[0], scale * (v - u).T @ x)
    torch.testing.assert_close(found.auxiliary[0], 0.3 * scale * (v - z).T @ x)
    assert net.weight.grad is None
    assert torch.equal(torch.get_rng_state(), state) and method.passes == 0


def test_term_of_weight_zero_has_a_gradient_of_exactly_zero() -> None:
    """Twice the same flow loss, once with each sign, must cancel without a rounding error."""
    x, u = (STREAMS.normal(name, range(6), (3,)) for name in ("x", "u"))
    given = replace(batch(made(Flow).needs(), 6), x0=x)
    net = Student(nn.Linear(3, 3, bias=False), None, CONFIG)
    found = separate_gradients(Linear(0.0, u, u), net, given, None)
    assert found.auxiliary[0].abs().max() == 0 < found.flow[0].abs().max()


def by_torch_func(method, pupil: Student, given: Batch, draw: Draw, weights: dict[str, float]):
    """Return the gradient of the weighted sum of some parts with respect to the network, by torch.func."""

    def total(parameters: dict[str, Tensor]) -> Tensor:
        call = partial(torch.func.functional_call, pupil.model, parameters)

        def functional(*args, **options) -> Prediction:
            return call(args, options)

        parts = method.loss(replace(pupil, model=functional), given, draw).parts
        return sum(weight * parts[name] for name, weight in weights.items())

    parameters = {name: p.detach().clone() for name, p in pupil.model.named_parameters()}
    return list(torch.func.grad(total)(parameters).values())


def plainly_selected(times: Times, values_BKD: Tensor) -> Tensor:
    """Return values per token by indexing; torch.func cannot differentiate the network's own function."""
    if times.which is None:
        return values_BKD
    return values_BKD[torch.arange(len(values_BKD))[:, None], times.which.long()]


FAST = ("flow", "repa", "self_flow", "reg", "contrastive_flow", "layersync")


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        *(pytest.param(name, CONFIG, marks=() if name in FAST else slow) for name in registry.METHODS),
        ("self_flow", OF_TEXT),
        pytest.param("sra", OF_TEXT, marks=slow),
    ],
    ids=lambda value: "text" if value is OF_TEXT else "labels" if value is CONFIG else value,
)
def test_gradients_of_every_method_equal_those_of_torch_func(
    name: str, backbone: BackboneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = made(registry.load("method", name), backbone)
    needs, config = method.needs(), method.config
    # Late enough for a flow loss that is ramped up.
    pupil, given = student(needs, backbone), batch(needs, backbone=backbone, step=60_000)
    draw = method.draw(STREAMS, given)
    found = separate_gradients(method, pupil, given, draw)
    monkeypatch.setattr(Times, "select", plainly_selected)
    for own, expected in zip(
        found.flow, by_torch_func(method, pupil, given, draw, {"flow": 1.0}), strict=True
    ):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-6)
    weights = {"align": config.strength, "token": getattr(config, "token_weight", 0.0)}
    weights["features"] = getattr(config, "feature_weight", 0.0)
    weights = {part: weight for part, weight in weights.items() if part in found.losses}
    assert (found.auxiliary is None) == (not weights) == (set(found.losses) == {"loss", "flow"})
    if found.auxiliary is not None:
        for own, expected in zip(
            found.auxiliary, by_torch_func(method, pupil, given, draw, weights), strict=True
        ):
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in (*pupil.model.parameters(), *method.parameters()))


def test_features_are_those_of_the_layers_that_the_method_compares() -> None:
    method = made(Repa, coefficient=0.5)
    needs = method.needs()
    pupil, given = student(needs), batch(needs)
    draw = method.draw(STREAMS, given)
    found = separate_gradients(method, pupil, given, draw).features
    # A third and 0.7 of four blocks are the first and the third.
    layers = sorted({method.config.layer, 1, 3, 4})
    places = [f"student {n}" for n in layers] + [f"encoder {method.config.encoder.name}"]
    assert list(found) == [f"{kind}/{place}" for place in places for kind in ("norm", "sameness")]
    tokens = given.views[0].tokens.double()
    norm = tokens.square().mean(dim=-1).sqrt().mean()
    unit = tokens / tokens.norm(dim=-1, keepdim=True)
    sameness = torch.einsum("btd,bsd->bts", unit, unit).mean()
    assert float(found[f"norm/{places[-1]}"]) == pytest.approx(float(norm), rel=1e-6)
    assert float(found[f"sameness/{places[-1]}"]) == pytest.approx(float(sameness), rel=1e-5)


def test_collapsed_features_have_sameness_one() -> None:
    one = STREAMS.normal("direction", range(2), (1, 8)) * torch.tensor([1.0, 2.0, 5.0])[:, None]
    assert float(describe("x", one)["sameness/x"]) == pytest.approx(1.0, abs=1e-6)
    apart = describe("x", torch.eye(4)[None])
    assert float(apart["sameness/x"]) == pytest.approx(1 / 4) and float(apart["norm/x"]) == pytest.approx(0.5)
