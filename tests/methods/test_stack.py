"""Stacks of objectives: the sum of their terms, one draw, and accepted names, settings and pairs."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.assembly.resolve import load_spec
from harness.config import registry
from harness.config.registry import load
from harness.data.pin import pinned
from harness.errors import UserError
from harness.flow.path import interpolate
from methods.common.method import Needs
from methods.common.routed import RoutedConfig
from methods.common.stack import stack_of
from methods.flow import Flow
from methods.internal_guidance import InternalGuidance
from methods.repa import Repa
from methods.tread import Tread
from tests.support.conformance import CONFIG, STREAMS, batch, configured, made, network, student, suited
from tests.support.runs import tiny

GUIDED, ROUTED = load("method", "repa+internal_guidance"), load("method", "repa+tread")
ENCODER = "method.repa.encoder.name=random:small"


def test_loss_is_the_sum_of_its_terms_on_the_same_draw() -> None:
    """Each term alone, on the network of the stack and with its projector, at weights 0.5 and 0.25."""
    stack = made(GUIDED, repa={"coefficient": 0.5}, internal_guidance={"coefficient": 0.25})
    pupil, given = student(stack.needs()), batch(stack.needs())
    draw = stack.draw(STREAMS, given)
    alone = {
        "repa": made(Repa, coefficient=0.5),
        "internal_guidance": made(InternalGuidance, coefficient=0.25),
    }
    alone["repa"].load_state_dict(stack.terms["repa"].state_dict())
    losses = stack.loss(pupil, given, draw)
    separate = {name: method.loss(pupil, given, draw).parts["align"] for name, method in alone.items()}
    flow = made(Flow).loss(pupil, given, draw).total
    assert torch.equal(losses.parts["flow"], flow)
    for name, alone_loss in separate.items():
        assert losses.parts[name].item() == pytest.approx(alone_loss.item(), rel=1e-6)
    total = flow + 0.5 * separate["repa"] + 0.25 * separate["internal_guidance"]
    assert losses.total.item() == pytest.approx(total.item(), rel=1e-6)


def test_weight_of_the_flow_loss_is_the_product_of_those_of_the_terms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for cls, weight in ((Repa, 0.5), (InternalGuidance, 0.25)):
        monkeypatch.setattr(cls.Config, "flow_weight", lambda self, step, weight=weight: weight * step)
    stack = made(GUIDED, repa={"coefficient": 0.5}, internal_guidance={"coefficient": 0.25})
    pupil, given = student(stack.needs()), batch(stack.needs(), step=3)
    total, parts = stack.loss(pupil, given, stack.draw(STREAMS, given))
    expected = 1.5 * 0.75 * parts["flow"] + 0.5 * parts["repa"] + 0.25 * parts["internal_guidance"]
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("name", ["dupa", "redi", "reg"])
def test_weight_of_the_flow_loss_is_that_of_methods_with_their_own_loss(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = load("method", name)
    method = made(cls)
    pupil, given = student(method.needs(), suited(method.needs(), CONFIG)), batch(method.needs(), step=3)
    draw = method.draw(STREAMS, given)
    plain = method.loss(pupil, given, draw)
    monkeypatch.setattr(cls.Config, "flow_weight", lambda self, step: 0.5 * step)
    expected = plain.total + 0.5 * plain.parts["flow"]
    assert method.loss(pupil, given, draw).total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_encoder_aligns_only_tokens_that_have_the_layer() -> None:
    """Layer 2 of the route 2 to 3: the mean is over the tokens that stay."""
    stack = made(ROUTED, repa={"layer": 2, "coefficient": 1.0})
    pupil, given = student(stack.needs()), batch(stack.needs())
    draw = stack.draw(STREAMS, given)
    x_t = interpolate(given.x0, draw.noise, draw.times, CONFIG)
    hidden = pupil.model(x_t, draw.times, given.y, taps=(2,), route=draw.route).hidden[2]
    projected, target = stack.terms["repa"].projectors[0](hidden), given.views[0].tokens
    stays = torch.zeros(projected.shape[:2], dtype=torch.bool).scatter(1, draw.route.kept, True)
    cosine = torch.cosine_similarity(projected, target, dim=-1)[stays].mean()
    assert stack.loss(pupil, given, draw).parts["repa"].item() == pytest.approx(-cosine.item(), abs=1e-6)


def test_draw_is_that_of_its_terms() -> None:
    draw, routed = (made(cls).draw(STREAMS, batch(made(cls).needs())) for cls in (ROUTED, Tread))
    assert torch.equal(draw.noise, routed.noise) and torch.equal(draw.times.levels, routed.times.levels)
    assert torch.equal(draw.route.kept, routed.route.kept)


def test_velocity_is_that_of_the_term_that_guides() -> None:
    stack, alone = made(GUIDED), made(InternalGuidance)
    net, given = network(0, suited(stack.needs(), CONFIG)), batch(Needs())
    times = alone.draw(STREAMS, given).times
    ours, theirs = (method.velocity(net, given.x0, times, given.y, scale=1.4) for method in (stack, alone))
    assert torch.equal(ours, theirs) and GUIDED.guides and not ROUTED.guides


def test_list_of_tables_is_the_stack_of_its_name(tmp_path: Path) -> None:
    file = tmp_path / "stack.toml"
    text = 'base = "digits"\nmethod = [{name = "tread", rate = 0.25}, {name = "repa"}]\n'
    file.write_text(text + '[methods.repa.encoder]\nname = "random:small"\n')
    listed = load_spec(str(file))
    words = ["method.name=repa+tread", "method.tread.rate=0.25", ENCODER]
    assert listed == load_spec("digits", words) and listed.method.name == "repa+tread"
    again = tmp_path / "spec.toml"
    again.write_text(listed.to_toml())
    assert load_spec(str(again)) == listed and load_spec(str(again)).id == listed.id
    file.write_text('base = "digits"\nmethod = [{name = "flow"}]\n')
    assert load_spec(str(file)).id == load_spec("digits").id
    file.write_text('base = "digits"\nmethod = ["repa", "tread"]\n')
    with pytest.raises(UserError, match="a stack is a list of tables"):
        load_spec(str(file))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tread+repa", "one stack has one name; write repa\\+tread"),
        ("repa+repa", "each term is named once"),
        ("flow+repa", "flow is part of every stack"),
        (
            "repa+reg",
            "repa and reg are not declared compatible \\(repa stacks with internal_guidance, tread, "
            "sprint\\)",
        ),
        ("repa+tred", "unknown method 'tred'.*Did you mean 'tread'"),
        ("repa+", "unknown method ''"),
    ],
)
def test_name_of_a_stack_is_checked(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny(f"method.name={name}")


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        (("loss",), "repa\\+tread: tread has a loss of another form"),
        (("draw",), ""),
        (("draw", "draw"), "repa\\+tread: repa and tread override Method.draw, and one term"),
        (("velocity",), ""),
        (("velocity", "velocity"), "repa\\+tread: repa and tread override Method.velocity, and one term"),
    ],
)
def test_stack_rejects_terms_of_which_it_would_leave_out_a_part(
    monkeypatch: pytest.MonkeyPatch, functions: tuple[str, ...], message: str
) -> None:
    for cls, function in zip((Tread, Repa), functions, strict=False):
        monkeypatch.setattr(cls, function, lambda *_: None)
    with pytest.raises(UserError, match=message) if message else nullcontext():
        # Without the memory of classes that are made already.
        stack_of.__wrapped__("repa+tread")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["method.repa.layr=1"], r"unknown key 'repa.layr'.*Did you mean 'method.repa.layer'"),
        (["method.repa.layer=9"], "method.repa.layer = 9: backbone pico has layers 1 to 4"),
        (["method.schedule.until=9"], "method.schedule: each term of a stack has its own; set method.repa"),
        (
            ["method.repa.schedule.until=9", "method.tread.schedule.until=5"],
            "the terms of a stack end at one step, not at 5 and 9",
        ),
    ],
)
def test_settings_of_terms_are_checked_like_those_of_methods(settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny("method.name=repa+tread", ENCODER, *settings)


@pytest.mark.parametrize(
    "name", [name for name in registry.METHODS if issubclass(load("method", name).Config, RoutedConfig)]
)
def test_aligned_layer_inside_a_route_has_no_given_tokens(name: str) -> None:
    """In a route, a sample has its own number of generated tokens, so no two can be compared as a batch."""
    with pytest.raises(UserError, match=rf"repa\+{name} does not support given tokens"):
        tiny(f"method.name=repa+{name}", ENCODER, "data.given=top_half")
    assert tiny(f"method.name={name}", "data.given=top_half")


def test_term_ends_at_its_own_step() -> None:
    spec = tiny("method.name=repa+tread", ENCODER, "method.repa.schedule.until=3")
    assert spec.method.until == 3 and spec.method.encodes(3) and not spec.method.encodes(4)
    stack = made(ROUTED, repa={"schedule": {"until": 3}})
    late = batch(Needs(), step=4)
    draw = stack.draw(STREAMS, late)
    assert list(stack.loss(student(Needs()), late, draw).parts) == ["flow"] and draw.route is not None


def test_every_stack_needs_what_its_terms_need() -> None:
    needs: Any = configured(load("method", "repa+internal_guidance")).needs()
    assert (needs.taps, needs.outputs, len(needs.encoders)) == ((1,), (1,), 1)
    assert registry.stack_name(["zzz", "tread", "aaa", "repa"]) == "repa+tread+aaa+zzz"
    assert load("method", "repa+tread") is ROUTED


def test_content_of_a_term_s_encoder_is_part_of_the_id(tmp_path: Path) -> None:
    """The file that `weights` names counts by its content, for a stack too."""
    file = tmp_path / "weights.bin"
    ids = []
    for content in (b"one", b"other"):
        file.write_bytes(content)
        spec = tiny("method.name=repa+tread", ENCODER, f"method.repa.encoder.weights={file}")
        ids.append(pinned(spec).id)
    assert len(set(ids)) == 2
