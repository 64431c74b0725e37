"""Requirements on every objective with the text-conditioned network; test_conformance.py has those with
labels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from harness.backbone.condition import Text
from harness.backbone.initialize import initialize
from harness.backbone.mmdit import MMDiTConfig
from harness.backbone.sizes import Size
from harness.backbone.tokens import Part
from harness.config.training_spec import TimeSpec
from harness.costs.flops import EMA_FLOPS, count
from harness.costs.optimizer import OPTIMIZER_FLOPS
from harness.encoders.base import Architecture
from harness.errors import UserError
from methods.common.method import Method, Needs
from methods.flow import Flow
from tests.methods.conftest import few_methods_fast
from tests.support.conformance import (
    DIM,
    HEADS,
    OF_TEXT,
    STREAMS,
    batch,
    configured,
    made,
    same,
    step,
    student,
)
from tests.support.modal import method_words, modal, refusal
from tests.support.runs import tiny

LATENT = MMDiTConfig(Size(4, 192, 3), 2, (4, 32, 32), 10)
JOINT = replace(OF_TEXT, shape=(3, 2, 8, 8), beside=(Part((4, 6), (2,)),))
CAPTIONED = ("backbone.kind=mmdit", "text.encoder=random:text", "text.length=16")


@few_methods_fast
def test_method_equals_flow_bit_for_bit_when_off(method: type[Method]) -> None:
    """Promise 2: three optimizer steps give the same losses and weights, and nothing is needed."""
    results = []
    for cls, settings in ((Flow, {}), (method, method.Config.off)):
        objective, pupil = made(cls, OF_TEXT, **settings), student(Needs(), OF_TEXT)
        assert objective.needs() == Needs() and not list(objective.parameters())
        optimizer = torch.optim.AdamW(pupil.model.parameters(), lr=1e-2)
        totals = {}
        for number in (1, 2, 3):
            given = batch(Needs(), first=8 * number, step=number, backbone=OF_TEXT)
            totals[str(number)] = step(objective, pupil, given)[0]
            optimizer.step()
            optimizer.zero_grad()
            objective.after_step(pupil, number)
        results.append((totals, pupil.model.state_dict()))
    assert same(results[0][0], results[1][0]) and same(results[0][1], results[1][1])


@few_methods_fast
def test_gradient_reaches_all_trained_weights_and_no_others(method: type[Method]) -> None:
    """Only the queries of the last block's text have zeros, because nothing reads them. They have zeros in
    the released network too."""
    objective = made(method, OF_TEXT)
    # Late enough for a flow loss that is ramped up.
    pupil, given = (
        student(objective.needs(), OF_TEXT),
        batch(objective.needs(), step=60_000, backbone=OF_TEXT),
    )
    _, gradients = step(objective, pupil, given)
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    text = {name: g for name, g in gradients.items() if "context" in name}
    assert text and all(gradient.any() for gradient in text.values())
    last = gradients["blocks.3.context_block.attn.qkv.weight"]
    assert not last[:32].any() and last[32:].any()
    assert pupil.ema is None or all(p.grad is None for p in pupil.ema.parameters())


@few_methods_fast
def test_step_has_the_same_bits_when_repeated(method: type[Method]) -> None:
    def once() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        objective = made(method, OF_TEXT)
        needs = objective.needs()
        return step(objective, student(needs, OF_TEXT), batch(needs, backbone=OF_TEXT))

    (total, gradients), (again, gradients_again) = once(), once()
    assert torch.equal(total, again) and same(gradients, gradients_again)


@few_methods_fast
def test_draws_are_those_with_labels(method: type[Method]) -> None:
    """Promise 1: noise, times and masks do not depend on the condition."""
    draws = []
    for backbone in (OF_TEXT, None):
        objective = made(method, *([backbone] if backbone else []))
        draws.append(objective.draw(STREAMS, batch(objective.needs())))
    assert torch.equal(draws[0].noise, draws[1].noise)
    assert torch.equal(draws[0].times.levels, draws[1].times.levels)
    assert same(draws[0].extra, draws[1].extra)


@few_methods_fast
def test_loss_depends_on_real_tokens_only(method: type[Method]) -> None:
    """The text reaches the loss; padding reaches neither the student nor the teacher."""
    objective = made(method, OF_TEXT)
    needs = objective.needs()
    given = batch(needs, backbone=OF_TEXT)
    draw, totals = objective.draw(STREAMS, given), []
    for change in (None, False, True):
        texts = [shifted(text, change) for text in (given.y, given.given)]
        changed = replace(given, y=texts[0], given=texts[1])
        with torch.no_grad():
            totals.append(objective.loss(student(needs, OF_TEXT), changed, draw).total)
    assert torch.equal(totals[0], totals[1])
    assert not torch.equal(totals[0], totals[2])


def shifted(text: Text, which: bool | None) -> Text:
    """Return the text with other features of its real tokens (True), its padding (False), or none (None)."""
    if which is None:
        return text
    return Text(torch.where((text.mask == which)[..., None], text.features + 1, text.features), text.mask)


@few_methods_fast
def test_loss_is_finite_in_bfloat16(method: type[Method]) -> None:
    objective = made(method, OF_TEXT)
    needs = objective.needs()
    given, pupil = batch(needs, backbone=OF_TEXT), student(needs, OF_TEXT)
    with torch.autocast("cpu", torch.bfloat16):
        losses = objective.loss(pupil, given, objective.draw(STREAMS, given))
    losses.total.backward()
    assert losses.total.isfinite() and all(p.grad.isfinite().all() for p in pupil.model.parameters())


@few_methods_fast
def test_flops_match_the_declared_needs(method: type[Method]) -> None:
    """The teacher costs at most one forward pass, and phases are those of `needs`, which holds with labels
    too."""
    objective = made(method, LATENT)
    needs = objective.needs()
    encoders = (Architecture(DIM, 1000, HEADS),) * len(needs.encoders)
    spec = tiny("train.batch_size=2")
    ours, flows = count(objective, spec, encoders=encoders).per_step, count(made(Flow, LATENT), spec).per_step
    phases = {"teacher": needs.teacher, "encoder": bool(needs.encoders)}
    assert ours.keys() - flows.keys() == {name for name, needed in phases.items() if needed}
    assert not needs.teacher or 0 < ours["teacher"] <= 0.35 * flows["student"]
    weights = sum(p.numel() for p in objective.parameters())
    if not needs.generates and not needs.outputs and not needs.fused:
        assert (
            ours["ema"] == flows["ema"]
            and ours["optimizer"] == flows["optimizer"] + OPTIMIZER_FLOPS * weights
        )
    assert flows["ema"] * OPTIMIZER_FLOPS == flows["optimizer"] * EMA_FLOPS


@few_methods_fast
def test_method_trains_on_video_with_sound_and_text(method: type[Method]) -> None:
    """One text for both parts, which have separate times, and of which some samples lack one.

    A method that cannot is refused by name when its spec is resolved.
    """
    config = configured(method)
    if config.needs().encoders or not method.parts_apart:
        reason = refusal("joint", config.name)
        assert reason
        with pytest.raises(UserError, match=reason):
            modal("joint", *CAPTIONED, *method_words(config.name))
        return
    time = TimeSpec(apart=method.times_apart)
    objective = method.build(config, JOINT, time=time, weights=(0.5, 0.5))
    initialize(objective, STREAMS, "method.")
    needs, pupil = objective.needs(), student(objective.needs(), JOINT)
    given = batch(needs, backbone=JOINT)
    given = replace(given, x0=STREAMS.normal("joint", given.index, JOINT.x_shape))
    if method.parts_mixed:
        lacking = torch.tensor([[True, True], [True, False], [False, True], [True, True]]).repeat(2, 1)
        given = replace(given, present=lacking)
    _, gradients = step(objective, pupil, given)
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    assert all(g.any() for name, g in gradients.items() if name.startswith(("context", "beside", "blocks.")))


@few_methods_fast
def test_method_equals_flow_bit_for_bit_when_off_on_video_with_sound(method: type[Method]) -> None:
    """Promise 2 with two parts and one text; without its knobs, a method needs no encoder of one modality."""
    results = []
    for cls, settings in ((Flow, {}), (method, method.Config.off)):
        config = configured(cls, **settings)
        objective = cls.build(config, JOINT, weights=(0.3, 0.7))
        pupil = student(Needs(), JOINT)
        given = batch(Needs(), backbone=JOINT)
        given = replace(given, x0=STREAMS.normal("joint", given.index, JOINT.x_shape))
        total, gradients = step(objective, pupil, given)
        results.append({"total": total, **gradients})
    assert same(*results)


def test_undropped_teacher_reads_the_captions_of_dropped_samples() -> None:
    """Attention separation's released teacher is conditioned on every sample; the student is not."""
    from methods.attention_separation import AttentionSeparation

    objective = made(AttentionSeparation, OF_TEXT)
    needs = objective.needs()
    given, pupil = batch(needs, backbone=OF_TEXT), student(needs, OF_TEXT)
    seen = {}
    for name, net in (("student", pupil.model), ("teacher", pupil.ema)):
        net.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[2]}))
    objective.loss(pupil, given, objective.draw(STREAMS, given))
    assert seen["student"] is given.y and seen["teacher"] is given.given
    assert not torch.equal(given.y.features[5], given.given.features[5])
