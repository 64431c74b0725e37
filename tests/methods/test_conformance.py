"""Requirements on every objective: each registered method, and one from a plug-in."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.backbone.sit import SiT, SiTConfig
from harness.backbone.sizes import Size
from harness.backbone.times import Times
from harness.costs.flops import EMA_FLOPS, Cost, count
from harness.costs.optimizer import OPTIMIZER_FLOPS
from harness.encoders.base import Architecture
from harness.flow.batch import Batch, Draw, View
from harness.runtime.random_streams import Streams
from methods.common.method import Method, Needs, Schedule
from methods.common.stack import Stack
from methods.flow import Flow
from tests.methods.conftest import few_methods_fast
from tests.support.conformance import (
    CONFIG,
    DIM,
    HEADS,
    PICO,
    STREAMS,
    batch,
    configured,
    drawn,
    made,
    same,
    step,
    student,
)
from tests.support.runs import tiny

LATENT = SiTConfig(Size(4, 192, 3), 2, (4, 32, 32), 10)


def narrow(cls: type[Method]) -> dict[str, Any]:
    """Return the setting of a narrow projector: in bfloat16 a wide one takes seconds without AMX."""
    if issubclass(cls, Stack):
        return {name: settings for name, term in cls.classes.items() if (settings := narrow(term))}
    return {"projector_width": 64} if "projector_width" in cls.Config.model_fields else {}


def off(cls: type[Method]) -> dict[str, Any]:
    assert cls is Flow or cls.Config.off, (
        "Config.off must name the settings under which this is plain flow matching"
    )
    return cls.Config.off


def test_method_equals_flow_bit_for_bit_when_off(method: type[Method]) -> None:
    """Promise 2: three optimizer steps give the same losses and weights, and nothing is needed."""
    results = []
    for cls, settings in ((Flow, {}), (method, off(method))):
        objective, pupil = made(cls, **settings), student(Needs())
        assert objective.needs() == Needs() and not list(objective.parameters())
        optimizer = torch.optim.AdamW(pupil.model.parameters(), lr=1e-2)
        totals = []
        for number in (1, 2, 3):
            totals.append(step(objective, pupil, batch(Needs(), first=8 * number, step=number))[0])
            optimizer.step()
            optimizer.zero_grad()
            objective.after_step(pupil, number)
        results.append(({str(n): t for n, t in enumerate(totals)}, pupil.model.state_dict()))
    assert same(results[0][0], results[1][0]) and same(results[0][1], results[1][1])


@pytest.fixture(scope="module")
def cost_of_flow() -> Cost:
    return count(made(Flow), tiny("train.steps=3"))


@few_methods_fast
def test_method_costs_the_same_as_flow_when_off(method: type[Method], cost_of_flow: Cost) -> None:
    assert count(made(method, **off(method)), tiny("train.steps=3")) == cost_of_flow


@few_methods_fast
def test_gradient_reaches_all_trained_weights_and_no_others(method: type[Method]) -> None:
    objective = made(method)
    pupil, given = student(objective.needs()), batch(objective.needs())
    _, gradients = step(objective, pupil, given)
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    assert any(gradient.any() for gradient in gradients.values())
    assert pupil.ema is None or all(p.grad is None for p in pupil.ema.parameters())


@few_methods_fast
def test_step_has_the_same_bits_when_repeated(method: type[Method]) -> None:
    def once() -> tuple[Tensor, dict[str, Tensor]]:
        objective = made(method)
        return step(objective, student(objective.needs()), batch(objective.needs()))

    (total, gradients), (again, gradients_again) = once(), once()
    assert torch.equal(total, again) and same(gradients, gradients_again)


def test_draws_are_shared_with_flow(method: type[Method]) -> None:
    """Promise 1: the noise is the same. The base time is one of a sample's levels, unless every token has a
    separate time."""
    objective = made(method)
    draw, flows = (m.draw(STREAMS, batch(m.needs())) for m in (objective, made(Flow)))
    assert torch.equal(draw.noise, flows.noise)
    assert draw.times.levels.shape[1] == (objective.needs().times or CONFIG.tokens)
    assert ((draw.times.levels >= 0) & (draw.times.levels <= 1)).all()
    if objective.needs().times:
        assert (draw.times.levels == flows.times.levels).any(dim=1).all()


def test_draws_depend_only_on_the_index(method: type[Method]) -> None:
    """Promise 1: two halves of a batch, drawn separately and with used streams, equal the full batch."""
    objective, streams = made(method), Streams(0)
    needs = objective.needs()
    full = drawn(objective.draw(Streams(0), batch(needs)))
    parts = [drawn(objective.draw(streams, batch(needs, 4, first))) for first in (4, 0)][::-1]
    assert same(full, {name: torch.cat([half[name] for half in parts]) for name in full})


class Levels(Flow):
    """Plain flow matching with the number of times of another method, to compare costs."""

    def draw(self, streams: Streams, batch: Batch) -> Draw:
        levels, tokens = self.levels, self.setting.backbone.tokens
        which = torch.zeros(len(batch.index), tokens, dtype=torch.bool) if levels == 2 else None
        noise = streams.normal("noise", batch.index, batch.x0.shape[1:])
        return Draw(noise, Times(torch.zeros(len(batch.index), levels), which))


@few_methods_fast
def test_flops_match_the_declared_needs(method: type[Method]) -> None:
    """Phases are those of `needs`. The teacher costs at most one forward pass.

    The student costs a plain step with the same number of times, within the factors that the method declares,
    and 3 x 2 FLOPs per token and weight of the method that tokens pass. Modules named `pooled_...` read one
    vector per sample.
    """
    objective = made(method, LATENT)
    needs = objective.needs()
    encoders = (Architecture(DIM, 1000, HEADS),) * len(needs.encoders)
    ours = count(objective, tiny("train.batch_size=4"), encoders=encoders).per_step
    flows = cost_with_levels(needs.times or LATENT.tokens)
    phases = {"teacher": needs.teacher, "encoder": bool(needs.encoders)}
    assert ours.keys() - flows.keys() == {name for name, needed in phases.items() if needed}
    # A method with twins passes both through its weights.
    passes = 1 if made(method).draw(STREAMS, batch(needs)).twin is None else 2
    heads = 6 * 4 * weights_of_sample(objective, LATENT.tokens) * passes
    least, most = method.student_cost
    assert least * flows["student"] <= ours["student"] - heads <= most * flows["student"]
    assert not needs.teacher or 0 < ours["teacher"] <= 0.35 * flows["student"]
    assert not needs.encoders or ours["encoder"] == 4000 * len(needs.encoders)
    # An extra token adds parameters to the backbone.
    added = parameters(SiT(objective.setting.backbone)) - parameters(SiT(LATENT))
    assert ours["ema"] == flows["ema"] + EMA_FLOPS * added
    assert ours["optimizer"] == flows["optimizer"] + OPTIMIZER_FLOPS * (parameters(objective) + added)


def weights_of_sample(objective: Method, tokens: int) -> int:
    """Return the number of products of a sample with weights, without those of conditions."""
    of_conditions = ("adaLN_modulation", "t_embedder", "y_embedder")
    return sum(
        p.numel() * (1 if name.startswith("pooled_") else tokens)
        for name, p in objective.named_parameters()
        if p.dim() > 1 and not any(part in name for part in of_conditions)
    )


@cache
def cost_with_levels(levels: int) -> dict[str, int]:
    """Return the FLOPs of a plain step by phase, with a number of times per sample."""
    plain = made(Levels, LATENT)
    plain.levels = levels
    return count(plain, tiny("train.batch_size=4")).per_step


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("kind", ["zeros", "constants", "huge"])
def test_loss_and_gradients_are_finite_in_bfloat16(method: type[Method], kind: str) -> None:
    """Features of encoder, student and teacher are all zero, all one, or of the order of 10 000."""
    objective = made(method, **narrow(method))
    pupil, given = student(objective.needs()), batch(objective.needs())
    for net in (pupil.model, pupil.ema):
        if net is not None:
            adverse(net, kind)
    given = replace(given, views=tuple(adverse_view(v, kind) for v in given.views))
    with torch.autocast("cpu", torch.bfloat16):
        losses = objective.loss(pupil, given, objective.draw(STREAMS, given))
    losses.total.backward()
    learned = (*pupil.model.parameters(), *objective.parameters())
    assert losses.total.isfinite() and all(p.grad.isfinite().all() for p in learned)


def adverse_view(view: View, kind: str) -> View:
    """Return tokens and summary that are zero, one, or of the order of 10 000, and extreme attention."""
    scaled = {"zeros": lambda t: 0 * t, "constants": torch.ones_like, "huge": lambda t: 1e4 * t}[kind]
    tokens, summary = (None if t is None else scaled(t).bfloat16() for t in view[:2])
    return View(tokens, summary, None if view.attention is None else (view.attention > 2).to(torch.float32))


@torch.no_grad()
def adverse(net: nn.Module, kind: str) -> None:
    """Make every hidden token of a network zero, one, or 10^4 times a normal draw."""
    if kind != "huge":
        for parameter in net.parameters():
            parameter.zero_()
        net.pos_embed.fill_(float(kind == "constants"))
    else:
        net.pos_embed.copy_(1e4 * STREAMS.normal("huge", [0], net.pos_embed.shape)[0])


def test_alignment_stops_after_until(method: type[Method]) -> None:
    """Teacher, encoder and taps are not used any more; with flow's times and network, the loss has flow's
    bits."""
    if not configured(method).scheduled:
        with pytest.raises(ValueError, match="schedule"):
            configured(method, schedule=Schedule(until=3))
        return
    needs = configured(method).needs()
    # An extra token is generated, and blocks are fused, until the last step.
    summarised = Needs(needs.encoders, summary=True) if needs.summary else Needs()
    lasting = summarised._replace(fused=needs.fused)
    objective, pupil, late = (
        made(method, schedule=Schedule(until=3)),
        student(lasting),
        batch(summarised, step=4),
    )
    passes = []
    pupil.model.register_forward_pre_hook(
        lambda _, args, kwargs: passes.append(kwargs["taps"]), with_kwargs=True
    )
    losses = objective.loss(pupil, late, objective.draw(STREAMS, late))
    assert list(losses.parts) == (["flow", "token"] if needs.summary else ["flow"])
    weight = objective.config.flow_weight(4)
    assert needs.summary or torch.equal(losses.total, weight * losses.parts["flow"])
    assert [list(taps) for taps in passes] == [[]]
    same_network = not needs.summary and not needs.fused
    if same_network and needs.times == 1 and objective.draw(STREAMS, late).groups is None:
        assert torch.equal(losses.total, weight * step(made(Flow), student(Needs()), late)[0])


def test_config_rejects_layers_that_the_backbone_lacks(method: type[Method]) -> None:
    if issubclass(method, Stack):
        pytest.skip("its terms have the settings")
    fields = [name for name in method.Config.model_fields if name.endswith("layer")]
    needs = configured(method).needs()
    routed = made(method).draw(STREAMS, batch(needs)).route is not None
    assert bool(fields) == bool(needs.taps or needs.outputs or routed)
    for field, layer in itertools.product(fields, (-1, 0, PICO.depth + 1)):
        with pytest.raises(ValueError, match=f"{field} = {layer}: backbone pico has layers 1 to 4"):
            configured(method, **{field: layer})


def test_method_has_a_source_and_a_docstring(method: type[Method]) -> None:
    assert method.source and sys.modules[method.__module__].__doc__
