"""Times and groups of tokens: the draws of each method, and the inputs of student and teacher."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.backbone.times import Times
from harness.flow.path import interpolate
from harness.runtime.random_streams import Streams
from methods.attention_separation import AttentionSeparation
from methods.diffusion_forcing import DiffusionForcing
from methods.dual_timestep import DualTimestep
from methods.flow import Flow
from methods.full_masking import FullMasking
from methods.self_flow import SelfFlow
from tests.support.small_methods import CONFIG, batch, build, f64, loss, student, unit


def test_dual_timestep_is_self_flow_without_its_loss() -> None:
    given = batch()
    ours = build(DualTimestep).draw(Streams(3), given)
    theirs = build(SelfFlow, student_layer=1, teacher_layer=3).draw(Streams(3), given)
    assert torch.equal(ours.times.levels, theirs.times.levels) and torch.equal(
        ours.times.which, theirs.times.which
    )
    losses, *_ = loss(build(DualTimestep))
    assert list(losses.parts) == ["flow"]


def test_near_second_time_is_at_most_a_fifth_cleaner() -> None:
    t, s = build(DualTimestep, second_time="near").draw(Streams(0), batch(2000)).times.levels.T
    assert (s <= t).all() and (t - s <= 0.2 + 1e-6).all()
    inside = t > 0.2
    assert (t - s)[inside].mean().item() == pytest.approx(0.1, abs=0.01)


def test_diffusion_forcing_gives_every_token_a_separate_time() -> None:
    draw = build(DiffusionForcing).draw(Streams(1), batch(2000))
    tau = draw.times.per_token_levels()
    assert tau.shape == (2000, 16) and len(tau[0].unique()) == 16
    correlation = np.corrcoef(tau[:, 0], tau[:, 1])[0, 1]
    assert abs(correlation) < 0.08 and tau.mean().item() == pytest.approx(0.5, abs=0.01)
    half = build(DiffusionForcing, share=0.5).draw(Streams(0), batch(2000))
    base = build(Flow).draw(Streams(0), batch(2000)).times.levels
    assert (half.times.per_token_levels() == base).float().mean().item() == pytest.approx(0.5, abs=0.02)


def test_full_masking_replaces_masked_tokens_by_noise() -> None:
    given = batch(500)
    draw = build(FullMasking, mask_ratio=0.25).draw(Streams(0), given)
    x = interpolate(given.x0, draw.noise, draw.times, CONFIG)
    pixels = (
        draw.times.which.reshape(-1, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3).expand_as(x)
    )
    assert torch.equal(x[pixels], draw.noise[pixels])
    assert draw.times.which.float().mean().item() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("dual", [True, False])
@pytest.mark.parametrize("separate", [True, False])
def test_attention_separation_draws_exact_groups_and_undivided_samples(dual: bool, separate: bool) -> None:
    method = build(
        AttentionSeparation, student_layer=1, teacher_layer=3, dual=dual, separate=separate, whole=0.3
    )
    draw = method.draw(Streams(0), batch(1000))
    assert (draw.groups is not None) == separate and (draw.times.which is not None) == dual
    groups = draw.groups if separate else draw.times.which
    if groups is not None:
        counts = groups.sum(1)
        # Exact counts, or an undivided sample.
        assert set(counts.tolist()) == {0, 4}
        assert (counts == 0).float().mean().item() == pytest.approx(0.3, abs=0.05)


def test_teacher_has_two_times_when_groups_share_one() -> None:
    """In the release, each group's teacher time is the student's minus a separate offset, dual or not."""
    method = build(AttentionSeparation, student_layer=1, teacher_layer=3, dual=False, similarity="cosine")
    losses, pupil, given, draw, prediction = loss(method)
    later = draw.times.levels - draw.extra["cleaner"]
    assert (later >= 0).all() and (later <= 0.2 + 1e-6).all() and (later[:, 0] != later[:, 1]).any()
    times = Times(draw.extra["cleaner"], draw.groups)
    x = interpolate(given.x0, draw.noise, times, CONFIG)
    b = f64(pupil.ema(x, times, given.label, taps=(3,), groups=draw.groups).hidden[3])
    a = f64(method.projector(prediction.hidden[1]))
    assert losses.parts["align"].item() == pytest.approx((1 - (unit(a) * unit(b)).sum(-1)).mean(), abs=1e-6)


@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (SelfFlow, {"gamma": 0.0, "mask_ratio": 0.0}),
        (DualTimestep, {"mask_ratio": 0.0}),
        (AttentionSeparation, {"coefficient": 0.0, "mask_ratio": 0.0}),
        (AttentionSeparation, {"dual": False}),
        (AttentionSeparation, {"whole": 1.0}),
    ],
)
def test_order_has_no_effect_when_no_token_has_a_second_time(cls, settings: dict) -> None:
    """A sample with a single time has that of plain flow matching, sorted or not."""
    given = batch(300)
    levels = build(cls, order="sorted", **settings).draw(Streams(0), given).times.levels[:, 0]
    assert torch.equal(levels, Flow.build(Flow.Config(), CONFIG).draw(Streams(0), given).times.levels[:, 0])


@pytest.mark.parametrize(("ratio", "count"), [(0.25, 4), (0.3, 5), (0.35, 6), (0.5, 8)])
def test_exact_mask_selects_the_nearest_count(ratio: float, count: int) -> None:
    """The released code also rounds R_M T, for 16 tokens, to the nearest integer."""
    masks = build(DualTimestep, mask="exact", mask_ratio=ratio).draw(Streams(0), batch(50)).times.which
    assert set(masks.sum(1).tolist()) == {count}


@pytest.mark.parametrize("teacher", ["mixed", "clean"])
def test_attention_separation_teacher_has_the_configured_view(teacher: str) -> None:
    method = build(
        AttentionSeparation, student_layer=1, teacher_layer=3, teacher=teacher, similarity="cosine"
    )
    losses, pupil, given, draw, prediction = loss(method)
    t, s = draw.times.levels.T
    if teacher == "mixed":
        later = draw.extra["cleaner"]
        assert (later <= draw.times.levels).all() and (draw.times.levels - later <= 0.2 + 1e-6).all()
        times, groups = Times.dual(later[:, 0], later[:, 1], draw.times.which), draw.groups
    else:
        times, groups = Times.per_sample(torch.minimum(t, s)), None
    x = interpolate(given.x0, draw.noise, times, CONFIG)
    b = f64(pupil.ema(x, times, given.label, taps=(3,), groups=groups).hidden[3])
    a = f64(method.projector(prediction.hidden[1]))
    assert losses.parts["align"].item() == pytest.approx((1 - (unit(a) * unit(b)).sum(-1)).mean(), abs=1e-6)


def test_student_separates_groups() -> None:
    """Changing the masked tokens does not change the velocity of the others."""
    method = build(AttentionSeparation, student_layer=1, teacher_layer=3)
    pupil, given = student(), batch(8)
    draw = method.draw(Streams(0), given)
    pixels = (
        draw.groups.bool()
        .reshape(-1, 1, 4, 4)
        .repeat_interleave(2, 2)
        .repeat_interleave(2, 3)
        .expand_as(given.x0)
    )
    velocities = []
    for x0 in (given.x0, torch.where(pixels, given.x0 + 3, given.x0)):
        x = interpolate(x0, draw.noise, draw.times, CONFIG)
        velocities.append(pupil(x, draw.times, given.y, groups=draw.groups).velocity)
    assert torch.equal(velocities[0][~pixels], velocities[1][~pixels])
