"""Rotary positions, compared with complex numbers in float64 and with transformers; relative attention."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.backbone.rotary import angles, divided, places, rotate, rotation
from harness.backbone.sit import SiT, SiTConfig
from harness.backbone.sizes import SIZES, Size
from harness.backbone.times import Times
from harness.backbone.tokens import Part
from harness.config import registry
from harness.config.spec import canonical
from harness.costs.flops import count
from harness.errors import UserError
from harness.runtime.random_streams import Streams
from methods.flow import Flow
from tests.support import conformance
from tests.support.networks import network
from tests.support.runs import tiny

SIZE = Size(2, 32, 2)
SOUND = Part((3, 8), (2,))
IMAGE = SiTConfig(SIZE, 2, (3, 8, 12), 5, positions="rotary")
JOINT = SiTConfig(SIZE, 2, (1, 4, 4, 6), 3, beside=(SOUND,), positions="rotary")
GRIDS = {"audio": (7,), "image": (3, 5), "video": (4, 3, 5)}


def part(grid: tuple[int, ...]) -> Part:
    return Part((1, *grid), (1,) * len(grid))


def normal(name: str, *shape: int) -> Tensor:
    return Streams(0).normal(name, range(shape[0]), shape[1:])


def given(config: SiTConfig, count: int = 3) -> tuple[Tensor, Times, Tensor]:
    return (
        normal("x", count, *config.x_shape),
        Times.per_sample(Streams(0).uniform("t", range(count))),
        torch.arange(count),
    )


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_rotation_equals_a_product_of_complex_numbers(grid: tuple[int, ...]) -> None:
    """RoFormer Eq. 34 in its complex form, (x_i + i y_i) e^(i m theta), computed pair by pair."""
    x = normal("x", 2, 3, part(grid).tokens, 16)
    found = rotate(x, rotation(16, [part(grid)]))
    pairs = {1: [8], 2: [4, 4], 3: [3, 3, 2]}[len(grid)]
    z = torch.complex(*x.double().chunk(2, dim=-1))
    for token, place in enumerate(np.ndindex(*grid)):
        pair = 0
        for at, n in zip(reversed(place), pairs, strict=True):
            for i in range(n):
                z[:, :, token, pair] *= np.exp(1j * at * 10000 ** (-i / n))
                pair += 1
    torch.testing.assert_close(found.double(), torch.cat([z.real, z.imag], dim=-1), atol=1e-6, rtol=0)


@pytest.mark.slow
def test_rotation_of_one_axis_equals_that_of_transformers() -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = llama.LlamaConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=32)
    q, k = normal("q", 2, 4, 20, 16), normal("k", 2, 4, 20, 16)
    cos, sin = llama.LlamaRotaryEmbedding(config)(q, torch.arange(20)[None])
    turns = rotation(16, [part((20,))])
    for found, expected in zip((q, k), llama.apply_rotary_pos_emb(q, k, cos, sin), strict=True):
        torch.testing.assert_close(rotate(found, turns), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_attention_depends_only_on_differences_of_positions(grid: tuple[int, ...]) -> None:
    """Moving all tokens by the same amount changes nothing, moving one token does."""
    place, pairs = places([part(grid)]), divided(16, len(grid))
    q, k, v = (normal(name, 2, 3, len(place), 16) for name in "qkv")

    def attended(place: np.ndarray) -> Tensor:
        angle = angles(place, pairs)
        turns = torch.from_numpy(np.stack([np.cos(angle), np.sin(angle)])).float()
        return F.scaled_dot_product_attention(rotate(q, turns), rotate(k, turns), v)

    moved = place + np.array([11.0, -3.0, 6.5][: len(grid)])
    torch.testing.assert_close(attended(moved), attended(place), atol=1e-5, rtol=0)
    for axis in range(len(grid)):
        alone = place.copy()
        alone[0, axis] += 1
        assert (attended(alone) - attended(place)).abs().max() > 1e-3


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("grid", [(64,), (16, 16), (8, 16, 16)])
def test_positions_are_unique_at_every_size(size: str, grid: tuple[int, ...]) -> None:
    """No two tokens have the same rotation, for any head width."""
    turns = rotation(SIZES[size].width // SIZES[size].heads, [part(grid)])
    code = turns.movedim(0, -1).flatten(1).double()
    assert torch.allclose(turns.square().sum(dim=0), torch.ones(()))
    assert torch.pdist(code).min() > 0.05


def test_places_of_parts_share_one_clock() -> None:
    """Sound has column 0, row 0 and the time of its frame, in units of frames."""
    place = places(JOINT.parts)
    video, sound = place[:24].reshape(4, 2, 3, 3), place[24:]
    assert (video[2, 1, 0] == [0, 1, 2]).all() and (video[..., 2] == np.arange(4)[:, None, None]).all()
    assert not sound[:, :2].any() and (sound[:, 2] == [0, 1, 2, 3]).all()
    finer = places(replace(JOINT, beside=(Part((3, 16), (2,)),)).parts)[24:]
    assert (finer[:, 2] == np.arange(8) / 2).all()


@pytest.mark.parametrize("config", [IMAGE, JOINT], ids=["image", "joint"])
def test_tokens_are_a_set_when_their_rotation_is_zero(config: SiTConfig) -> None:
    """With all angles at zero, permuted tokens give permuted outputs; with rotations they do not."""
    model, (x, times, y) = network(config), given(config)
    assert not {"pos_embed", "rotation"} & model.state_dict().keys()
    order = torch.from_numpy(np.random.default_rng(0).permutation(config.tokens))
    embedded = model._embedded(x)
    model._embedded = lambda _: embedded[:, order]
    ordered = network(config)
    rotated = model(x, times, y, taps=(2,)).hidden[2], ordered(x, times, y, taps=(2,)).hidden[2]
    assert (rotated[0] - rotated[1][:, order]).abs().max() > 1e-3
    for rotary in (model, ordered):
        rotary.rotation[0], rotary.rotation[1] = 1, 0
    unrotated = model(x, times, y, taps=(2,)).hidden[2], ordered(x, times, y, taps=(2,)).hidden[2]
    torch.testing.assert_close(unrotated[0], unrotated[1][:, order])


def test_video_of_one_frame_equals_an_image_bit_for_bit() -> None:
    image = network(IMAGE)
    video = SiT(replace(IMAGE, shape=(3, 1, 8, 12)))
    video.load_state_dict(image.state_dict())
    x, times, y = given(IMAGE)
    one, other = image(x, times, y).velocity, video(x[:, :, None], times, y).velocity
    assert one.any() and torch.equal(one, other[:, :, 0])
    one.square().sum().backward()
    other.square().sum().backward()
    pairs = zip(image.parameters(), video.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs)


def test_groups_separate_attention_and_heads_are_rotated() -> None:
    model, (x, times, y) = network(IMAGE), given(IMAGE)
    groups = (torch.arange(IMAGE.tokens) % 2).expand(3, -1)
    found = model(x, times, y, groups=groups, heads=(1,), taps=(2,))
    other = x.clone()
    # Only group 1 of sample 0 changes.
    other[0] += IMAGE.spread(groups[:1].float())[0]
    moved = model(other, times, y, groups=groups, taps=(2,)).hidden[2]
    assert torch.equal(moved[0, ::2], found.hidden[2][0, ::2])
    assert not torch.equal(moved[0, 1::2], found.hidden[2][0, 1::2])
    q, _ = found.heads[1]
    plain = network(replace(IMAGE, positions="sincos"))
    plain.pos_embed.zero_()
    unrotated, _ = plain(x, times, y, heads=(1,)).heads[1]
    torch.testing.assert_close(q, rotate(unrotated, model.rotation))


def test_rotate_returns_the_type_of_its_input() -> None:
    x = normal("x", 2, 2, IMAGE.tokens, 16)
    half = rotate(x.bfloat16(), rotation(16, IMAGE.parts))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), rotate(x, rotation(16, IMAGE.parts)), atol=0.04, rtol=0)


def test_rotary_positions_are_rejected_when_heads_are_too_narrow() -> None:
    with pytest.raises(ValueError, match="head of 4 channels cannot be divided among 3 axes"):
        SiT(SiTConfig(Size(1, 8, 2), 2, (1, 4, 4, 6), 3, positions="rotary"))


def test_run_id_changes_only_when_positions_are_rotary() -> None:
    spec = tiny()
    assert tiny("backbone.positions=sincos").id == spec.id != tiny("backbone.positions=rotary").id
    assert "positions" not in canonical(spec)
    with pytest.raises(UserError, match=r"backbone\.positions"):
        tiny("backbone.positions=rotery")


@pytest.mark.parametrize("name", sorted(registry.METHODS))
def test_every_method_trains_with_rotary_positions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss and all gradients are finite, and every layer has a gradient."""
    monkeypatch.setattr(conformance, "CONFIG", replace(conformance.CONFIG, positions="rotary"))
    method = conformance.made(registry.load("method", name), conformance.CONFIG)
    student = conformance.student(method.needs())
    # Late enough for a flow loss that is ramped up.
    total, grads = conformance.step(method, student, conformance.batch(method.needs(), step=60_000))
    assert total.isfinite() and all(grad is None or grad.isfinite().all() for grad in grads.values())
    assert all(grads[f"blocks.{i}.attn.qkv.weight"].any() for i in range(conformance.CONFIG.size.depth))


def test_flops_do_not_depend_on_the_positions() -> None:
    spec, build = tiny("train.steps=3"), lambda config: Flow.build(Flow.Config(name="flow"), config)
    assert count(build(IMAGE), spec) == count(build(replace(IMAGE, positions="sincos")), spec)


@pytest.mark.slow
def test_compiled_blocks_give_the_same_velocity() -> None:
    model, (x, times, y) = network(IMAGE), given(IMAGE)
    plain = model(x, times, y).velocity
    for block in model.blocks:
        block.compile(dynamic=False)
    torch.testing.assert_close(model(x, times, y).velocity, plain, atol=1e-5, rtol=1e-4)
