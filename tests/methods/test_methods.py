"""Flow matching, REPA and Self-Flow, compared with their equations in float64 numpy, and with each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.backbone.times import Times
from harness.config.training_spec import TimeSpec
from harness.flow.batch import View
from harness.flow.path import interpolate, sample_times, shifted, velocity_target
from harness.runtime.random_streams import Streams
from methods.common.method import Schedule
from methods.flow import Flow
from methods.repa import Repa
from methods.self_flow import SelfFlow
from tests.support.small_methods import CONFIG, STREAMS, batch, build, student


def cosine(a: Tensor, b: Tensor) -> np.ndarray:
    a, b = (tensor.detach().double().numpy() for tensor in (a, b))
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def test_path_runs_from_data_to_noise() -> None:
    x0, noise = (STREAMS.normal(name, range(3), CONFIG.shape).double() for name in ("x0", "eps"))

    def at(t: float) -> Tensor:
        return interpolate(x0, noise, Times.per_sample(torch.full((3,), t, dtype=torch.float64)), CONFIG)

    assert torch.equal(at(0.0), x0) and torch.equal(at(1.0), noise)
    torch.testing.assert_close((at(0.6) - at(0.4)) / 0.2, velocity_target(x0, noise))


def test_times_have_their_distributions() -> None:
    """For logit-normal times P(t < q) = Phi((logit q - mean) / std); a shift moves quantiles."""
    from scipy import stats

    index = np.arange(20_000)
    t = sample_times(TimeSpec(kind="logit_normal", mean=0.5, std=2.0), Streams(1), "time", index).numpy()
    assert stats.kstest(np.log(t / (1 - t)), stats.norm(0.5, 2.0).cdf).pvalue > 1e-3
    plain = sample_times(TimeSpec(), Streams(1), "time", index)
    moved = sample_times(TimeSpec(shift=3.0), Streams(1), "time", index)
    torch.testing.assert_close(moved, 3 * plain / (1 + 2 * plain))
    assert shifted(torch.tensor([0.0, 1.0]), 2.95).tolist() == [0.0, 1.0]


def test_flow_loss_is_the_mean_square() -> None:
    method, pupil, given = build(Flow), student(), batch()
    draw = method.draw(Streams(0), given)
    x_t = interpolate(given.x0, draw.noise, draw.times, CONFIG)
    v = pupil(x_t, draw.times, given.y).velocity
    target = (draw.noise - given.x0).double().numpy()
    assert method.loss(pupil, given, draw).total.item() == pytest.approx(
        ((v.detach().double().numpy() - target) ** 2).mean()
    )


def test_repa_is_flow_plus_negative_cosine() -> None:
    method, pupil, given = build(Repa, layer=2, coefficient=0.3, projector_width=40), student(), batch()
    draw = method.draw(Streams(0), given)
    losses = method.loss(pupil, given, draw)
    x_t = interpolate(given.x0, draw.noise, draw.times, CONFIG)
    hidden = pupil(x_t, draw.times, given.y, taps=(2,)).hidden[2]
    expected = -cosine(method.projectors[0](hidden), given.views[0].tokens).mean()
    assert losses.parts["align"].item() == pytest.approx(expected, abs=1e-6)
    assert losses.total.item() == pytest.approx(losses.parts["flow"].item() + 0.3 * expected, rel=1e-6)


@pytest.mark.parametrize("align_on", ["all", "masked"])
def test_self_flow_follows_equations_2_to_7(align_on: str) -> None:
    method, pupil, given = (
        build(SelfFlow, student_layer=1, teacher_layer=3, gamma=0.7, align_on=align_on),
        student(),
        batch(),
    )
    draw = method.draw(Streams(0), given)
    losses = method.loss(pupil, given, draw)
    t, s = draw.times.levels.T
    mask = draw.times.which
    tau = torch.where(mask, s[:, None], t[:, None])
    pixels = tau.reshape(-1, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    x_tau = (1 - pixels) * given.x0 + pixels * draw.noise
    prediction = pupil(x_tau, Times.per_token(tau), given.y, taps=(1,))
    clean = torch.minimum(t, s)
    x_min = (1 - clean)[:, None, None, None] * given.x0 + clean[:, None, None, None] * draw.noise
    target = pupil.ema(x_min, Times.per_sample(clean), given.y, taps=(3,)).hidden[3]
    gap = 1 - cosine(method.projector(prediction.hidden[1]), target)
    each = np.where(mask.numpy(), gap, np.nan)
    expected = gap.mean() if align_on == "all" else np.nan_to_num(np.nanmean(each, axis=1)).mean()
    flow = ((prediction.velocity - (draw.noise - given.x0)) ** 2).mean().item()
    assert losses.parts["flow"].item() == pytest.approx(flow, rel=1e-5)
    assert losses.parts["align"].item() == pytest.approx(expected, abs=1e-6)
    assert losses.total.item() == pytest.approx(flow + 0.7 * expected, rel=1e-5)


def test_self_flow_times_have_their_marginals() -> None:
    """For uniform p(t), unsorted token noise has mean 1/2, and E min(t, s) = 1/3.

    A token is noisier than the teacher with probability 1/2, and by 1/6 on average, for every mask ratio R.
    Sorted, the mean token noise is 1/3 + R/3.
    """
    for order, mean in (("unsorted", 0.5), ("sorted", 1 / 3 + 0.25 / 3)):
        draw = build(SelfFlow, student_layer=1, teacher_layer=3, order=order).draw(Streams(1), batch(6000))
        tau, clean = draw.times.per_token_levels(), draw.extra["cleaner"][:, 0]
        assert tau.mean().item() == pytest.approx(mean, abs=0.01)
        assert clean.mean().item() == pytest.approx(1 / 3, abs=0.01)
        if order == "unsorted":
            assert (tau > clean[:, None]).float().mean().item() == pytest.approx(0.5, abs=0.01)
            assert (tau - clean[:, None]).mean().item() == pytest.approx(1 / 6, abs=0.01)


def test_masks_are_bernoulli_or_exact() -> None:
    drawn = {
        mask: build(SelfFlow, student_layer=1, teacher_layer=3, mask=mask)
        .draw(Streams(1), batch(2000))
        .times.which
        for mask in ("bernoulli", "exact")
    }
    counts = drawn["bernoulli"].sum(1).double()
    assert counts.mean().item() == pytest.approx(4, abs=0.15) and counts.var().item() == pytest.approx(
        3, rel=0.15
    )
    assert (drawn["exact"].sum(1) == 4).all()
    assert drawn["exact"].double().mean(0).numpy() == pytest.approx(np.full(16, 0.25), abs=0.04)


def test_methods_share_noise_and_base_times() -> None:
    """Promise 1: with one seed, every method has the same noise and the same first time."""
    draws = [
        m.draw(Streams(4), batch())
        for m in (build(Flow), build(Repa, layer=1), build(SelfFlow, student_layer=1, teacher_layer=2))
    ]
    for draw in draws[1:]:
        assert torch.equal(draw.noise, draws[0].noise)
        assert torch.equal(draw.times.levels[:, 0], draws[0].times.levels[:, 0])


def test_gradients_reach_only_student_and_method() -> None:
    given = batch(8)
    for method in (build(Repa, layer=1), build(SelfFlow, student_layer=1, teacher_layer=3)):
        pupil = student()
        given.views[0].tokens.requires_grad_(True)
        method.loss(pupil, given, method.draw(Streams(0), given)).total.backward()
        assert all(p.grad is not None for p in (*pupil.model.parameters(), *method.parameters()))
        assert all(p.grad is None for p in pupil.ema.parameters())
    given.views[0].tokens.requires_grad_(False)


@pytest.mark.parametrize("features", ["zeros", "constant", "huge"])
def test_alignment_stays_finite(features: str) -> None:
    values = {
        "zeros": torch.zeros(8, 16, 24),
        "constant": torch.ones(8, 16, 24),
        "huge": 1e4 * torch.ones(8, 16, 24),
    }
    given = batch(8)
    given = replace(given, views=(View(values[features].bfloat16()),))
    method, pupil = build(Repa, layer=1), student()
    with torch.autocast("cpu", torch.bfloat16):
        total = method.loss(pupil, given, method.draw(Streams(0), given)).total
    total.backward()
    assert total.isfinite() and all(p.grad.isfinite().all() for p in method.parameters())


def test_schedule_gives_the_weight_of_a_step() -> None:
    """Weights at the ends and in the middle, computed by hand."""
    factor = lambda step, **settings: Schedule(**settings).factor(step)  # noqa: E731
    assert factor(10**6) == 1.0
    assert [factor(s, until=4) for s in (1, 4, 5)] == [1, 1, 0]
    assert [factor(s, warmup=4) for s in (1, 2, 4, 9)] == [0.25, 0.5, 1, 1]
    assert [factor(s, until=12, warmup=4, decay="linear") for s in (2, 4, 8, 12, 13)] == [0.5, 1, 0.5, 0, 0]
    assert [factor(s, until=8, decay="cosine") for s in (2, 4, 6)] == pytest.approx(
        [(2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4]
    )
    with pytest.raises(ValueError, match="requires `until` > "):
        Schedule(decay="linear")


@pytest.mark.parametrize("cls", [Repa, SelfFlow])
def test_method_equals_flow_after_until(cls) -> None:
    settings = {"layer": 1} if cls is Repa else {"student_layer": 1, "teacher_layer": 3, "mask_ratio": 0.0}
    method, pupil = build(cls, schedule=Schedule(until=3), **settings), student()
    late = replace(batch(8), step=4, views=())
    plain = build(Flow)
    ours, flows = (m.loss(pupil, late, m.draw(Streams(0), late)).total for m in (method, plain))
    assert torch.equal(ours, flows)
