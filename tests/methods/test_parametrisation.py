"""The flow loss of every method equals a closed form, for each output of the network and weight of times.

Closed forms are in float64, with the time of every token.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from harness.assembly.build import backbone_config
from harness.assembly.resolve import load_spec
from harness.backbone.times import Times
from harness.backbone.tokens import Part
from harness.config import registry
from harness.config.training_spec import FlowSpec
from harness.data.open import open_dataset
from harness.errors import UserError
from harness.flow.batch import Batch, Draw
from harness.flow.path import interpolate
from harness.flow.weighting import Weights
from harness.records import checkpoint, checkpoint_files
from methods.common.method import Method, Setting, velocity_error
from methods.redi import upsampled
from tests.support.conformance import CONFIG, STREAMS, batch, configured, suited
from tests.support.conformance import student as built_student
from tests.support.runs import tiny, trained, weights

FAST = ("flow", "self_flow", "internal_guidance", "tread")
FLOWS = {
    "x": FlowSpec(prediction="x"),
    "min_snr": FlowSpec(weighting="min_snr", gamma=3.0),
    "min_snr of x": FlowSpec(prediction="x", weighting="min_snr", gamma=3.0),
    "log_variance": FlowSpec(weighting="log_variance"),
}
OTHERS = sorted({*registry.METHODS} - {*FAST})
CASES = [(name, kind) for name in FAST for kind in FLOWS]
CASES += [
    pytest.param(name, kind, marks=pytest.mark.slow)
    for name in OTHERS
    for kind in ("x", "log_variance")
    if (name, kind) != ("redi", "x")
]


def made(name: str, flow: FlowSpec) -> tuple[Method, Any]:
    """Return a method for a flow, and the backbone that both need."""
    cls = registry.load("method", name)
    config = configured(cls)
    backbone = replace(suited(config.needs(), CONFIG), prediction=flow.prediction)
    method = cls.build(config, backbone, encoder_dims=(24,) * len(config.needs().encoders), flow=flow)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return method, backbone


def velocity_of(method: Method, given: Batch, draw: Draw, backbone: Any) -> np.ndarray:
    """Return the network's velocity on the noised samples of a draw."""
    needs, extra = method.needs(), None
    if needs.summary:
        t, clean = draw.times.levels, given.views[0].summary
        assert clean is not None
        extra = (1 - t) * clean + t * draw.extra["token_noise"]
    x0, noise = given.x0, draw.noise
    if needs.features:
        z = upsampled(given.views[0].tokens, backbone.grid, backbone.shape[1:])
        x0, noise = torch.cat([x0, z], dim=1), torch.cat([noise, draw.extra["feature_noise"]], dim=1)
    x = interpolate(x0, noise, draw.times, backbone)
    pupil = built_student(needs, backbone)
    with torch.no_grad():
        found = pupil(x, draw.times, given.y, groups=draw.groups, extra=extra, route=draw.route).velocity
    return f64(found[:, : given.x0.shape[1]])


def f64(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def uncertainty(weight: np.ndarray, tau: np.ndarray) -> np.ndarray:
    """Return EDM2's u over Fourier features of ln(sigma) / 4, with the quantiles that are ours."""
    place = (np.arange(128) + 0.5) / 128
    level = np.log(np.clip(tau, 1e-4, 1 - 1e-4) / (1 - np.clip(tau, 1e-4, 1 - 1e-4))) / 4
    phase = 2 * np.pi * ((np.sqrt(5) - 1) / 2 * np.arange(128) % 1)
    angle = level[..., None] * 2 * np.pi * stats.norm.ppf(place) + phase
    return np.sqrt(2) * np.cos(angle) @ weight


def closed_form(kind: str, method: Method, given: Batch, draw: Draw, velocity: np.ndarray) -> float:
    x0, noise = f64(given.x0), f64(draw.noise)
    tau = np.broadcast_to(f64(CONFIG.spread(draw.times.per_token_levels())), x0.shape)
    clamped = np.maximum(tau, 0.05) if kind.endswith("x") else tau
    clean_error = np.square((1 - tau) * x0 + tau * noise - clamped * velocity - x0)
    if kind == "x":
        return float((clean_error / clamped**2).mean())
    if kind.startswith("min_snr"):
        # Hang et al.: min(SNR, gamma) on the clean sample, whatever the network predicts.
        with np.errstate(divide="ignore"):
            return float((np.minimum(((1 - tau) / tau) ** 2, 3.0) * clean_error).mean())
    u = uncertainty(f64(method.log_variance.weight), tau)
    return float((np.exp(-u) * np.square(velocity - (noise - x0)) + u).mean())


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_flow_loss_equals_its_closed_form(name: str, kind: str) -> None:
    method, backbone = made(name, FLOWS[kind])
    given = batch(method.needs())
    draw = method.draw(STREAMS, given)
    # Times below the clamp of x-prediction too, and data itself.
    levels = draw.times.levels.clone()
    levels[:3] *= torch.tensor([0.05, 0.01, 0.0])[:, None]
    draw = replace(draw, times=replace(draw.times, levels=levels))
    losses = method.loss(built_student(method.needs(), backbone), given, draw)
    # A method with two noisings of a sample has the mean of two flow losses.
    noisings = [one for one in (draw, getattr(draw, "twin", None)) if one is not None]
    expected = [
        closed_form(kind, method, given, one, velocity_of(method, given, one, backbone)) for one in noisings
    ]
    assert losses.parts["flow"].item() == pytest.approx(np.mean(expected), rel=1e-4)
    losses.total.backward(retain_graph=True)
    if kind == "log_variance":
        assert method.log_variance is not None
        (gradient,) = torch.autograd.grad(losses.parts["flow"], [method.log_variance.weight])
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "part"), [("internal_guidance", "align"), ("contrastive_flow", "align"), ("redi", "features")]
)
def test_second_velocity_has_the_factor_of_its_time_and_u_does_not_fit_it(name: str, part: str) -> None:
    """At one time, exp(-u(t)) and min(SNR, gamma) t^2 are factors of the term."""
    terms, factors = {}, {"none": 1.0, "min_snr": 3.0 * 0.3**2}
    for weighting in ("none", "min_snr", "log_variance"):
        method, backbone = made(name, FlowSpec(weighting=weighting, gamma=3.0))
        given = batch(method.needs())
        draw = method.draw(STREAMS, given)
        draw = replace(draw, times=Times.per_sample(torch.full((len(given.x0),), 0.3)))
        term = method.loss(built_student(method.needs(), backbone), given, draw).parts[part]
        terms[weighting] = term.item()
        if weighting == "log_variance":
            learned = method.log_variance.weight
            factors[weighting] = float(np.exp(-uncertainty(f64(learned), np.array(0.3))))
            assert torch.autograd.grad(term, [learned], allow_unused=True) == (None,)
    expected = {kind: terms["none"] * factor for kind, factor in factors.items()}
    assert terms == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("missing", [False, True])
def test_weights_of_one_are_no_weights_for_samples_of_several_parts(missing: bool) -> None:
    config = replace(CONFIG, shape=(3, 2, 8, 8), beside=(Part((5, 6), (2,)),))
    setting = Setting(config, weights=(0.7, 0.3))
    given = batch(configured(registry.load("method", "flow")).needs(), size=2)
    present = torch.tensor([[True, True], [False, True]]) if missing else None
    given = replace(given, present=present)
    velocity, target = torch.randn(2, 2, *config.x_shape, generator=torch.Generator().manual_seed(0))
    plain = velocity_error(velocity, target, given, setting)
    found = velocity_error(velocity, target, given, setting, Weights(torch.ones(2, 1)))
    assert found.item() == pytest.approx(plain.item(), rel=1e-6)
    doubled = velocity_error(velocity, target, given, setting, Weights(torch.full((2, 1), 2.0)))
    assert doubled.item() == pytest.approx(2 * plain.item(), rel=1e-6)


def test_further_channels_are_refused_with_another_output() -> None:
    words = ("method.name=redi", "method.encoder.name=random:tiny", "method.rank=3")
    for allowed, prediction in ((True, "velocity"), (False, "x")):
        spec = tiny(*words, f"flow.prediction={prediction}")
        with nullcontext() if allowed else pytest.raises(UserError, match=r"method\.name = redi: .* not x"):
            backbone_config(spec, open_dataset(spec.data))


def test_terms_of_a_stack_share_the_learned_weight() -> None:
    cls = registry.load("method", "repa+internal_guidance")
    method = cls.build(configured(cls), CONFIG, encoder_dims=(24,), flow=FLOWS["log_variance"])
    assert [name for name, _ in method.named_parameters() if "log_variance" in name] == [
        "log_variance.weight"
    ]
    assert all(term.setting.log_variance is method.log_variance for term in method.terms.values())


def test_flow_is_another_trajectory_only_if_it_is_set() -> None:
    plain = load_spec("digits")
    assert load_spec("digits", ["flow.prediction=velocity", "flow.weighting=none"]).id == plain.id
    assert "flow" not in plain.trajectory
    settings = [("prediction=x",), ("weighting=min_snr",), ("weighting=min_snr", "gamma=2.0")]
    ids = {load_spec("digits", [f"flow.{one}" for one in some]).id for some in settings}
    assert len(ids | {plain.id}) == 4
    with pytest.raises(UserError, match=r"flow\.gamma = 2 is read only with flow\.weighting = 'min_snr'"):
        load_spec("digits", ["flow.gamma=2"])


@pytest.mark.slow
@pytest.mark.usefixtures("quick_networks")
def test_learned_weight_is_trained_and_saved_and_continues_to_the_same_bits(tmp_path: Path) -> None:
    flow = ("flow.weighting=log_variance", "train.steps=12")
    unbroken = trained(tiny(*flow), tmp_path / "unbroken")
    trained(tiny(*flow[:1], "train.steps=5"), tmp_path / "broken")
    continued = trained(tiny(*flow), tmp_path / "broken")
    assert weights(continued) == weights(unbroken)
    saved = checkpoint.load(checkpoint_files.checkpoints(unbroken.path / "checkpoints")[-1]).tensors
    assert saved["method.log_variance.weight"].abs().max() > 0
    assert "optimizer.method.log_variance.weight.exp_avg" in saved
    assert not any("log_variance" in name for name in saved if name.startswith("ema."))
