"""Modality dropout: its draws, its losses, and the runs on single parts that it must equal."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.backbone.sit import SiT
from harness.backbone.times import Times
from harness.config import registry
from harness.config.spec import canonical
from harness.data.feed import MicroBatches
from harness.data.modality_dropout import draw_present
from harness.errors import UserError
from harness.flow.batch import Batch, Draw
from harness.flow.student import Student
from harness.records.record import DONE
from harness.runtime.random_streams import Streams
from harness.train.objective import Objective
from harness.train.state import Run
from methods.common.method import Method
from methods.common.missing_parts import mean_of_tokens, weights_of_samples
from tests.support.conformance import drawn, same
from tests.support.conformance_runs import encoder_words
from tests.support.joint_runs import built, fed
from tests.support.modal import MODALITIES, SMALL, modal
from tests.support.runs import TINY, everything, losses, part, tiny, torchrun, trained

MIX = ("data.video_alone=0.25", "data.audio_alone=0.25")
CASES = {
    "flow": (),
    "flow, times apart": ("time.apart=true",),
    "flow, rotary": ("backbone.positions=rotary",),
    "diffusion_forcing": (),
    "dual_timestep": (),
    "dupa": (),
    "full_masking": (),
    "internal_guidance": (),
    "layersync": (),
    "self_flow": (),
    "self_flow, times apart": ("time.apart=true", "method.mask_ratio_audio=0.5"),
    "self_flow, masked": ("method.align_on=masked", "method.teacher_time=same"),
    "sra": (),
    "sra, over tokens": ("method.similarity=cosine_tokens",),
    "attention_separation": (),
    "attention_separation, clean": ("method.teacher=clean", "method.similarity=cosine"),
    "attention_separation, one room": ("method.separate=false",),
}
FAST = ("flow", "self_flow", "self_flow, times apart", "attention_separation")
SOME_FAST = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
"""The cases, of which those of other methods are in the slow suite."""
MIXED = sorted({case.partition(",")[0] for case in CASES})


pytestmark = pytest.mark.usefixtures("quick_networks")


def case(name: str, *words: str) -> Run:
    return built(f"method.name={name.partition(',')[0]}", *CASES[name], *words)


def stepped(run: Run, batch: Batch, draw: Draw) -> tuple[Tensor, dict[str, Tensor]]:
    total, _ = Objective(run)(batch, draw)
    for parameter in run.learned.values():
        parameter.grad = None
    total.backward()
    return total.detach(), {
        name: torch.zeros(()) if p.grad is None else p.grad for name, p in run.learned.items()
    }


def test_draw_present_follows_the_shares_and_leaves_no_sample_empty() -> None:
    present = draw_present((0.2, 0.5), Streams(0), np.arange(20_000))
    video, audio = present.unbind(dim=1)
    assert (video | audio).all()
    assert (video & ~audio).double().mean().item() == pytest.approx(0.2, abs=0.01)
    assert (audio & ~video).double().mean().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("alone", [(1.0, 0.0), (0.0, 1.0), (0.7, 0.3), (0.9, 0.1)])
def test_draw_present_keeps_one_part_when_shares_sum_to_one(alone: tuple[float, float]) -> None:
    present = draw_present(alone, Streams(3), np.arange(5000))
    assert (present.sum(dim=1) == 1).all()
    assert present.double().mean(dim=0).tolist() == pytest.approx(alone, abs=0.03)


@pytest.mark.slow
def test_draws_are_those_of_the_run_without_dropout() -> None:
    """Only the present parts differ, and they do not depend on how a batch is split."""
    for name in MIXED:
        plain, mixed = built(f"method.name={name}"), built(f"method.name={name}", *MIX)
        (one, its), (other, others) = fed(plain), fed(mixed)
        assert one.present is None and not other.present.all()
        assert all(torch.equal(getattr(one, kind), getattr(other, kind)) for kind in ("x0", "y", "label"))
        assert same(drawn(its), drawn(others)), name
    cuts = [b for rank in (0, 1) for b in mixed.feed.batches(MicroBatches(range(1, 2), 8, 2, rank, 2), 0)]
    presents = [torch.ones(2, 2, dtype=torch.bool) if b.present is None else b.present for b in cuts]
    assert torch.equal(torch.cat(presents), other.present)


@pytest.mark.slow
def test_complete_samples_have_the_loss_without_dropout_bit_for_bit() -> None:
    for name in MIXED:
        run, plain = built(f"method.name={name}", "data.audio_alone=1e-12"), built(f"method.name={name}")
        (total, grads), (expected, others) = stepped(run, *fed(run)), stepped(plain, *fed(plain))
        assert torch.equal(total, expected) and same(grads, others), name


@pytest.mark.parametrize("name", SOME_FAST)
def test_missing_parts_affect_neither_loss_nor_gradients(name: str) -> None:
    """Other data and noise in a missing part give the same bits."""
    run = case(name, *MIX)
    batch, draw = fed(run)
    sizes = torch.tensor([part.values for part in run.model.config.parts])
    absent = ~batch.present.repeat_interleave(sizes, dim=1)
    total, grads = stepped(run, batch, draw)
    assert absent.any() and total.isfinite()
    for seed in (1, 2):
        other = 10 * Streams(seed).normal("other", batch.index, batch.x0.shape[1:])
        x0, noise = (torch.where(absent, other, given) for given in (batch.x0, draw.noise))
        again, others = stepped(run, replace(batch, x0=x0), replace(draw, noise=noise))
        assert torch.equal(again, total) and same(others, grads)
    x0 = torch.where(absent, batch.x0, other)
    assert not torch.equal(stepped(run, replace(batch, x0=x0), draw)[0], total)


@pytest.mark.parametrize("name", SOME_FAST)
def test_loss_of_a_batch_is_the_mean_over_its_samples(name: str) -> None:
    """The weight of a sample does not depend on the other samples of its batch."""
    run = case(name, *MIX)
    with torch.no_grad():
        batched = Objective(run)(*fed(run))[0].item()
        each = [run.feed.batch(np.array([index])) for index in range(8)]
        single = [Objective(run)(b, run.method.draw(run.streams, b))[0].item() for b in each]
    assert batched == pytest.approx(np.mean(single), rel=1e-5)


def test_loss_of_a_mixed_batch_agrees_with_a_loop_over_samples() -> None:
    run = built("data.video_weight=0.3", "data.audio_weight=0.9", *MIX)
    batch, draw = fed(run)
    with torch.no_grad():
        x = (1 - draw.times.levels) * batch.x0 + draw.times.levels * draw.noise
        groups = run.model.config.of_tokens(batch.present).long()
        error = run.model(x, draw.times, batch.y, groups=groups).velocity - (draw.noise - batch.x0)
        found = Objective(run)(batch, draw)[0].item()
    video, expected = run.model.config.parts[0].values, 0.0
    for row, (has_video, has_audio) in zip(error.double().numpy(), batch.present.tolist(), strict=True):
        parts = [(0.3, row[:video])] * has_video + [(0.9, row[video:])] * has_audio
        weighed = sum(w * np.square(values).mean() for w, values in parts)
        expected += 1.2 * weighed / sum(w for w, _ in parts) / len(error)
    assert found == pytest.approx(expected, rel=1e-5)


def narrowed(run: Run, place: int) -> tuple[SiT, SiT, Method]:
    """Return networks and method of a single part, with its projections and its position embeddings."""
    config, kind = run.model.config, run.model.config.parts[place]
    tokens = [part.tokens for part in config.parts]
    at = slice(sum(tokens[:place]), sum(tokens[: place + 1]))
    names = {
        "x_embedder.": f"beside_embedders.{place - 1}.",
        "final_layer.linear.": f"final_layer.linear_beside.{place - 1}.",
        "final_layers.1.linear.": f"final_layers.1.linear_beside.{place - 1}.",
    }
    alone = replace(
        config,
        shape=kind.shape,
        patch=kind.patch[-1],
        patch_time=kind.patch[0] if place == 0 else 1,
        beside=(),
    )
    found = []
    for network in (run.model, run.ema):
        weights, model = network.state_dict(), SiT(alone)
        taken = {name: weights[name] for name in model.state_dict()}
        if place:
            taken |= {
                n: weights[name.replace(a, b)]
                for a, b in names.items()
                for n in taken
                if (name := n).startswith(a)
            }
        taken["pos_embed"] = weights["pos_embed"][:, at]
        model.load_state_dict(taken)
        found.append(model)
    method = type(run.method)(run.method.config, replace(run.method.setting, backbone=alone, weights=()))
    method.load_state_dict(run.method.state_dict())
    return *found, method


def cut(run: Run, batch: Batch, draw: Draw, place: int) -> tuple[Batch, Draw]:
    """Return a batch and its draw restricted to one part."""
    x0 = run.model.config.split_parts(batch.x0)[place]
    return replace(batch, x0=x0, present=None), cut_draw(run, draw, place)


def cut_draw(run: Run, draw: Draw, place: int) -> Draw:
    config = run.model.config

    def of_tokens(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.split([p.tokens for p in config.parts], dim=1)[place]

    levels = draw.times.levels
    if levels.shape[1] == config.tokens:
        levels = of_tokens(levels)
    times = Times(levels, of_tokens(draw.times.which))
    noise = config.split_parts(draw.noise)[place]
    twin = None if draw.twin is None else cut_draw(run, draw.twin, place)
    return Draw(noise, times, of_tokens(draw.groups), draw.extra, twin=twin)


@pytest.mark.parametrize("place", [0, 1], ids=["video", "audio"])
@pytest.mark.parametrize(
    "name", [one for one in SOME_FAST if not str(one).count("times apart") and not str(one).count("rotary")]
)
def test_loss_at_share_one_is_that_of_the_single_part(name: str, place: int) -> None:
    """Loss and gradient agree to 1e-6 with networks that only have this part."""
    run = case(name, f"data.{('video', 'audio')[place]}_alone=1.0")
    batch, draw = fed(run)
    total, grads = stepped(run, batch, draw)
    model, ema, method = narrowed(run, place)
    single = method.loss(Student(model, ema, model.config), *cut(run, batch, draw, place)).total
    single.backward()
    assert total.item() == pytest.approx(single.item(), rel=1e-6)
    block = "blocks.1.attn.qkv.weight"
    torch.testing.assert_close(grads[f"model.{block}"], model.get_parameter(block).grad, atol=1e-6, rtol=1e-4)


@pytest.mark.slow
def test_run_on_silent_videos_is_the_run_on_videos(tmp_path: Path) -> None:
    """The random streams of the video part are a prefix of those of the joint sample."""
    short = ("train.steps=2", "eval.every=2", "method.name=self_flow")
    more = (*short, "eval.metrics=['fd:local']")
    silent = trained(modal("joint", *more, "data.video_alone=1.0"), tmp_path)
    only = ("data.audio_weight=0.0", "eval.metrics=['fd:video:local']")
    video = trained(modal("joint", *short, *only), tmp_path)
    assert losses(silent) == pytest.approx(losses(video), rel=1e-5)


@pytest.mark.parametrize("name", sorted(registry.METHODS))
def test_every_method_supports_dropout_or_raises_with_the_reason(name: str) -> None:
    words = [f"method.name={name}", *encoder_words("method", registry.load("method", name))]
    if name in MIXED:
        run = built(*words, *MIX)
        total, grads = stepped(run, *fed(run))
        assert total.isfinite() and all(grad.isfinite().all() for grad in grads.values())
        return
    reasons = dict.fromkeys(("dispersive", "contrastive_flow", "sigreg", "diversedit"), "compares samples")
    # A route keeps a number of a sample's tokens, those of missing parts included.
    reasons["tread"] = reasons["sprint"] = "does not support samples that lack a part"
    reason = reasons.get(name, "reads one modality|predicts patches")
    with pytest.raises(UserError, match=reason):
        modal("joint", *words, *MIX)


def test_methods_do_not_support_dropout_by_default() -> None:
    assert not Method.parts_mixed
    assert [name for name in sorted(registry.METHODS) if registry.load("method", name).parts_mixed] == MIXED


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.video_alone=0.7", "data.audio_alone=0.4"], "at most 1 together"),
        (["data.video_alone=1.5"], r"data\.parts\.video\.alone = 1\.5"),
        (["data.video_alone=0.5", "data.audio_weight=0.0"], "a part of weight 0 is removed"),
    ],
)
def test_shares_raise_when_impossible(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        modal("joint", *words)


def test_dropout_needs_joint_data_and_its_defaults_keep_run_ids() -> None:
    with pytest.raises(UserError, match="a robot's demonstrations have parts, and digits is image"):
        tiny("data.audio_alone=0.1")
    plain = modal("joint")
    assert "alone" not in canonical(plain)
    assert modal("joint", "data.video_alone=0.0").id == plain.id != modal("joint", *MIX).id


def test_means_and_weights_count_only_present_parts() -> None:
    values = torch.tensor([[1.0, 2.0, 6.0], [4.0, 5.0, 9.0]])
    present = torch.tensor([[True, True, False], [True, True, True]])
    assert mean_of_tokens(values, present).item() == pytest.approx((1.5 + 6) / 2)
    assert mean_of_tokens(values[..., None].expand(-1, -1, 4), present).item() == pytest.approx((1.5 + 6) / 2)
    assert torch.equal(mean_of_tokens(values, None), values.mean())
    weights = weights_of_samples(torch.tensor([[True, True], [True, False], [False, True]]), (0.3, 0.9))
    torch.testing.assert_close(weights, torch.tensor([[0.3, 0.9], [1.2, 0.0], [0.0, 1.2]]))


@pytest.mark.slow
def test_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    """Promise 4."""
    spec = modal("joint", "method.name=self_flow", *MIX)
    unbroken = trained(spec, tmp_path / "a")
    assert unbroken.of("eval")[-1]["metrics"]
    assert part(unbroken, "model") != part(
        trained(modal("joint", "method.name=self_flow"), tmp_path), "model"
    )
    shutil.copytree(unbroken.path, tmp_path / "b" / spec.id)
    (tmp_path / "b" / spec.id / DONE).unlink()
    (tmp_path / "b" / spec.id / "checkpoints" / "step-00000006.safetensors").unlink()
    assert everything(trained(spec, tmp_path / "b")) == everything(unbroken)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Promise 1: the loss to 1e-6."""
    words = (*SMALL, *MODALITIES["joint"], "method.name=self_flow", *MIX)
    one = trained(tiny(*words), tmp_path / "one")
    result = torchrun("digits", (*TINY, *words), tmp_path / "two")
    assert result.returncode == 0, result.stderr
    two = type(one)(tmp_path / "two" / one.id)
    assert two.environment[0]["devices"] == 2
    assert losses(two) == pytest.approx(losses(one), rel=1e-6)
