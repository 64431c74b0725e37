"""The text-conditioned network, compared with a plain restatement of the released one and with itself."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.assembly.build import build_backbone
from harness.backbone.condition import Text, TextShape, shared
from harness.backbone.initialize import initialize
from harness.backbone.mmdit import MMDiT, MMDiTConfig
from harness.backbone.rotary import angles, divided, places
from harness.backbone.sit import SiT, SiTConfig
from harness.backbone.sizes import Size, size_named
from harness.backbone.times import Times
from harness.backbone.tokens import Part
from harness.config.spec import RuntimeSpec
from harness.flow.samplers import velocity_field
from harness.runtime.random_streams import Streams
from tests.support import plain_mmdit
from tests.support.text import SMALL, TEXT, network, texts

SIZES = {"depth": 4, "width": 48, "channels": 2, "patch": 2, "side": 8, "dim": 20}
HEADS = 3
RELEASED = MMDiTConfig(Size(4, 48, HEADS), 2, (2, 8, 8), 1, text=TextShape(20, 7))
JOINT = replace(SMALL, shape=(3, 2, 8, 8), beside=(Part((4, 6), (2,)),))


def inputs(batch: int = 4, config: MMDiTConfig = SMALL) -> tuple[Tensor, Tensor, Tensor, Text]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *config.x_shape, generator=generator)
    t, s = torch.rand(2, batch, generator=generator)
    return x, t, s, texts(batch, config.text)


def mask_of(batch: int = 4, config: MMDiTConfig = SMALL) -> Tensor:
    return torch.rand(batch, config.tokens, generator=torch.Generator().manual_seed(2)) < 0.3


def released() -> tuple[dict[str, Tensor], MMDiT]:
    state = plain_mmdit.random_state(3, **SIZES)
    model = MMDiT(RELEASED).eval()
    model.load_state_dict({name.replace("joint_blocks.", "blocks."): t for name, t in state.items()})
    return state, model


@pytest.mark.parametrize("times", ["per sample", "dual", "per token"])
def test_velocity_and_taps_equal_the_plain_restatement(times: str) -> None:
    """With times per token, the text has the mean of their embeddings, which `mean` is by definition."""
    state, model = released()
    x, t, s, y = inputs(3, RELEASED)
    mask = mask_of(3, RELEASED)
    ours, tau = {
        "per sample": (Times.per_sample(t), t),
        "dual": (Times.dual(t, s, mask), torch.where(mask, s[:, None], t[:, None])),
        "per token": (Times.per_token(torch.where(mask, s[:, None], t[:, None])),) * 2,
    }[times]
    tau = tau if isinstance(tau, Tensor) else tau.levels
    with torch.no_grad():
        found = model(x, ours, y, taps=(2,))
        expected, hidden = plain_mmdit.velocity(state, HEADS, x, tau, y.features, tap=2)
    torch.testing.assert_close(found.velocity, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.hidden[2], hidden, rtol=0, atol=1e-5)


def test_gradients_equal_the_plain_restatement() -> None:
    state, model = released()
    state = {name: value.requires_grad_(name != "pos_embed") for name, value in state.items()}
    x, t, _, y = inputs(2, RELEASED)
    model(x, Times.per_sample(t), y).velocity.square().mean().backward()
    plain_mmdit.velocity(state, HEADS, x, t, y.features)[0].square().mean().backward()
    for name, parameter in model.named_parameters():
        expected = state[name.replace("blocks.", "joint_blocks.", 1)].grad
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6, msg=name)


def test_published_size_has_half_a_billion_parameters() -> None:
    """The sum over the released names and shapes, without the frozen position code."""
    size = size_named("T2I")
    assert size == Size(24, 768, 24)
    with torch.device("meta"):
        model = MMDiT(MMDiTConfig(size, 2, (4, 32, 32), 1))
    listed = plain_mmdit.shapes(24, 768, 4, 2, 32, 768)
    listed.pop("pos_embed")
    expected = sum(torch.Size(shape).numel() for shape in listed.values())
    assert sum(p.numel() for p in model.parameters()) == expected
    assert 0.45e9 < expected < 0.55e9


@pytest.mark.parametrize("kind", ["mean", "min", "clean"])
def test_text_time_under_times_per_token(kind: str) -> None:
    """With the first linear layer of text modulation as a probe, the condition of the text is known."""
    model = network(replace(SMALL, text_time=kind))
    x, t, s, y = inputs()
    mask = mask_of()
    seen = []
    model.blocks[0].context_block.adaLN_modulation.register_forward_hook(lambda _, i, o: seen.append(i[0]))
    model(x, Times.dual(t, s, mask), y)
    tau = torch.where(mask, s[:, None], t[:, None])
    embedded = {
        "mean": model.t_embedder(tau).mean(dim=1),
        "min": model.t_embedder(tau.amin(dim=1)),
        "clean": model.t_embedder(torch.zeros(1)),
    }[kind]
    torch.testing.assert_close(seen[0][:, 0], torch.nn.functional.silu(embedded))


@pytest.mark.parametrize("kind", ["mean", "min"])
def test_text_has_the_time_of_its_sample_if_there_is_one(kind: str) -> None:
    x, t, _, y = inputs()
    plain, other = network(), network(replace(SMALL, text_time=kind))
    times = Times.per_sample(t)
    assert torch.equal(plain(x, times, y).velocity, other(x, times, y).velocity)


def test_min_ignores_levels_that_no_token_has() -> None:
    x, t, s, y = inputs()
    model = network(replace(SMALL, text_time="min"))
    none = torch.zeros(4, SMALL.tokens, dtype=torch.bool)
    torch.testing.assert_close(
        model(x, Times.dual(t, 0 * s, none), y).velocity, model(x, Times.per_sample(t), y).velocity
    )


def test_modulation_runs_once_per_level() -> None:
    model, rows = network(), []
    for block in model.blocks:
        for stream in (block.context_block, block.x_block):
            stream.adaLN_modulation.register_forward_hook(lambda _, i, o: rows.append(i[0].shape[1]))
    x, t, s, y = inputs()
    model(x, Times.dual(t, s, mask_of()), y)
    assert rows == [2, 1] * 3


def test_padding_has_no_influence_under_a_mask_and_has_some_without() -> None:
    x, t, _, y = inputs()
    masked = texts(4, masked=True)
    changed = torch.where(masked.mask[..., None], y.features, y.features + 1)
    model, times = network(), Times.per_sample(t)
    before = model(x, times, Text(y.features, masked.mask)).velocity
    after = model(x, times, Text(changed, masked.mask)).velocity
    assert torch.equal(before, after)
    assert not torch.allclose(model(x, times, Text(changed)).velocity, model(x, times, y).velocity)


def test_mask_equals_a_shorter_text() -> None:
    x, t, _, y = inputs()
    model, times = network(), Times.per_sample(t)
    real = (torch.arange(TEXT.length) < 3).expand(4, -1)
    torch.testing.assert_close(
        model(x, times, Text(y.features, real)).velocity,
        model(x, times, Text(y.features[:, :3])).velocity,
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize("masked", [False, True])
def test_groups_separate_the_image_and_share_the_text(masked: bool) -> None:
    """Pixels of one group do not reach the other group, not even through the text; the text reaches both."""
    x, t, _, _ = inputs()
    y = texts(4, masked=masked)
    groups = (torch.arange(SMALL.tokens) % 2).expand(4, -1)
    group = SMALL.spread(groups.float()).bool()
    model, times = network(), Times.per_sample(t)
    before = model(x, times, y, groups=groups).velocity
    after = model(torch.where(group, x + 1.0, x), times, y, groups=groups).velocity
    assert torch.equal(before.masked_select(~group), after.masked_select(~group))
    assert not torch.allclose(before.masked_select(group), after.masked_select(group))
    reworded = model(x, times, Text(y.features + 1, y.mask), groups=groups).velocity
    for part in (group, ~group):
        assert not torch.allclose(before.masked_select(part), reworded.masked_select(part))
    one_group = model(x, times, y, groups=torch.zeros_like(groups)).velocity
    torch.testing.assert_close(one_group, model(x, times, y).velocity)


def test_stop_after_gives_the_hidden_tokens_of_a_full_pass() -> None:
    """The text stream ends with the keys and values that the last layer reads."""
    x, t, _, y = inputs()
    model, times, passes = network(), Times.per_sample(t), []
    model.blocks[1].context_block.mlp.register_forward_hook(lambda *_: passes.append(1))
    full = model(x, times, y, taps=(1, 2, 3))
    assert passes == [1]
    early = model(x, times, y, taps=(2,), stop_after=2)
    assert passes == [1] and early.velocity is None and set(early.hidden) == {2}
    torch.testing.assert_close(early.hidden[2], full.hidden[2], rtol=0, atol=1e-6)
    assert full.hidden[1].shape == (4, SMALL.tokens, 32) and full.hidden[1].is_contiguous()


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_heads_are_queries_and_keys_of_image_tokens(positions: str) -> None:
    """The softmax over all keys, with the text's keys from a hook, gives the attention's image rows."""
    model = network(replace(SMALL, positions=positions))
    x, t, _, y = inputs()
    found = model(x, Times.per_sample(t), y, heads=(1, 3)).heads
    assert set(found) == {1, 3}
    for queries, keys in found.values():
        assert queries.shape == keys.shape == (4, 2, SMALL.tokens, 16)
    h, _ = model._tokens(x, None)
    block = model.blocks[0].x_block
    shift, scale, *_ = block.modulation(torch.nn.functional.silu(model.t_embedder(t))[:, None])
    inner = torch.nn.functional.layer_norm(h, (32,), eps=1e-6) * scale + shift
    q, k, _ = block.attn.qkv(inner).unflatten(2, (3, 2, 16)).permute(2, 0, 3, 1, 4)
    if positions == "sincos":
        torch.testing.assert_close(found[1][0], q)
        torch.testing.assert_close(found[1][1], k)
    else:
        # A rotation keeps the length of every pair of channels, and the first token is not rotated.
        torch.testing.assert_close(found[1][0].norm(dim=-1), q.norm(dim=-1))
        torch.testing.assert_close(found[1][0][:, :, 0], q[:, :, 0])
        assert not torch.allclose(found[1][0][:, :, 1], q[:, :, 1])


def test_rotary_positions_turn_image_tokens_only() -> None:
    """The attention of the first block in float64, with pairs of channels turned as complex numbers."""
    model = network(replace(SMALL, positions="rotary"))
    x, t, _, y = inputs()
    inner, mixed, block = {}, [], model.blocks[0]
    for name, stream in (("text", block.context_block), ("image", block.x_block)):
        stream.attn.qkv.register_forward_hook(lambda _, i, o, name=name: inner.update({name: o.double()}))
    block.x_block.attn.proj.register_forward_hook(lambda _, i, o: mixed.append(i[0]))
    model(x, Times.per_sample(t), y, stop_after=3)
    q, k, v = (
        torch.cat([inner[name].unflatten(2, (3, 2, 16))[:, :, i] for name in ("text", "image")], 1)
        for i in range(3)
    )
    place = places(SMALL.parts)
    turns = torch.from_numpy(np.exp(1j * angles(place, divided(16, place.shape[1]))))
    turns = torch.cat([torch.ones(TEXT.length, 8), turns])[:, None]
    q, k = ((torch.complex(*a.chunk(2, dim=-1)) * turns) for a in (q, k))
    scores = torch.einsum("bqnc,bknc->bnqk", q, k.conj()).real / 4
    expected = torch.einsum("bnqk,bknc->bqnc", scores.softmax(-1), v).flatten(2)[:, TEXT.length :]
    torch.testing.assert_close(mixed[0].double(), expected, rtol=0, atol=1e-5)


def test_extra_token_comes_first_and_has_a_velocity() -> None:
    config = replace(SMALL, extra=6)
    x, t, _, y = inputs()
    model, extra = network(config), torch.randn(4, 6, generator=torch.Generator().manual_seed(4))
    found = model(x, Times.per_sample(t), y, taps=(1,), extra=extra)
    assert found.extra.shape == (4, 6) and found.hidden[1].shape == (4, 1 + SMALL.tokens, 32)
    without = model(x, Times.per_sample(t), y)
    assert without.extra is None and without.velocity.shape == x.shape
    assert not torch.allclose(found.velocity, without.velocity)


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_video_with_sound_reads_one_text(positions: str) -> None:
    config = replace(JOINT, positions=positions)
    x, t, s, y = inputs(config=config)
    model = network(config)
    times = Times(torch.stack([t, s], 1), config.part_of_token.expand(4, -1))
    velocity = model(x, times, y).velocity
    other = model(x, times, Text(y.features + 1)).velocity
    assert velocity.shape == x.shape
    for ours, theirs in zip(config.split_parts(velocity), config.split_parts(other), strict=True):
        assert not torch.allclose(ours, theirs)


@pytest.mark.parametrize("kind", ["mean", "min", "clean"])
@pytest.mark.parametrize("place", [0, 1], ids=["video", "audio"])
def test_missing_part_leaves_the_network_of_the_other_part(place: int, kind: str) -> None:
    """Each part has a time. The velocity is that of a network of one part with the same weights, so content,
    time and tokens of the missing part have no influence, not even through the text."""
    joint, part = network(replace(JOINT, text_time=kind)), JOINT.parts[place]
    lengths = {"patch_time": part.patch[0]} if place == 0 else {"patch": part.patch[0]}
    single = network(replace(SMALL, text_time=kind, shape=part.shape, **lengths))
    of_audio = {"x_embedder": "beside_embedders.0", "final_layer.linear": "final_layer.linear_beside.0"}
    weights = {}
    for name in single.state_dict():
        module = next((module for module in of_audio if name.startswith(f"{module}.")), "")
        theirs = of_audio.get(module, "") if place == 1 else module
        weights[name] = joint.state_dict()[theirs + name.removeprefix(module)]
    weights["pos_embed"] = joint.pos_embed.split([part.tokens for part in JOINT.parts], dim=1)[place]
    single.load_state_dict(weights)
    x, t, s, y = inputs(config=JOINT)
    present = JOINT.of_tokens(torch.arange(2)[None].expand(4, -1) == place)
    groups = torch.where(present, 0, -1)
    times = Times(torch.stack([t, s], 1), JOINT.part_of_token.expand(4, -1))
    found = JOINT.split_parts(joint(x, times, y, groups=groups).velocity)[place]
    alone = single(JOINT.split_parts(x)[place], Times.per_sample((t, s)[place]), y).velocity
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)


def test_checkpointing_gives_the_same_gradients() -> None:
    x, t, s, y = inputs()
    gradients = []
    for recompute in (False, True):
        model = network()
        model.checkpoint_activations = recompute
        model(x, Times.dual(t, s, mask_of()), y, taps=(2,)).velocity.square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert all(g is not None and torch.equal(g, gradients[1][name]) for name, g in gradients[0].items())


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_compiled_blocks_give_the_same_velocity_and_gradients(masked: bool) -> None:
    x, t, s, _ = inputs()
    y, found = texts(4, masked=masked), []
    for compiled in (False, True):
        model = network()
        for block in model.blocks if compiled else ():
            block.compile(dynamic=False)
        velocity = model(x, Times.dual(t, s, mask_of()), y).velocity
        velocity.square().mean().backward()
        found.append((velocity, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-5)
    for ours, theirs in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["mean", "clean"])
def test_shared_texts_give_the_velocity_of_separate_ones(masked: bool, kind: str) -> None:
    model = network(replace(SMALL, text_time=kind))
    x, t, _, _ = inputs(6)
    y = texts(3, masked=masked)[[0, 1, 0, 0, 1, 1]]
    both = shared(y)
    assert len(both.distinct) == 2 and both.rows.tolist() in ([0, 1, 0, 0, 1, 1], [1, 0, 1, 1, 0, 0])
    for times in (Times.per_sample(t), Times.per_sample(t[:1])):
        expected = model(x, Times.per_sample(times.levels[:, 0].expand(6)), y).velocity
        for _ in range(2):
            torch.testing.assert_close(model(x, times, both).velocity, expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_shared_texts_are_embedded_once_and_projected_once_per_pass() -> None:
    model, rows = network(), []
    x, t, _, y = inputs(4)
    both = shared(y[[0, 0, 0, 0]])
    model.context_embedder.register_forward_hook(lambda _, i, o: rows.append(("embedded", len(o))))
    model.blocks[0].context_block.attn.qkv.register_forward_hook(lambda _, i, o: rows.append(("qkv", len(o))))
    for time in t.split(1):
        model(x, Times.per_sample(time), both)
    assert rows == [("embedded", 1)] + [("qkv", 1)] * 4


def test_number_of_merged_texts_is_a_power_of_two() -> None:
    different = texts(5)
    merged = shared(different[[0, 1, 2, 0, 1, 2, 0, 1, 2]])
    assert len(merged.distinct) == 4
    assert torch.equal(merged.distinct.features[merged.rows], different.features[[0, 1, 2] * 3])
    assert len(shared(different[[0, 1, 2, 3, 4] * 2]).distinct) == 10


@pytest.mark.slow
def test_compiled_pieces_are_reused_by_every_kind_of_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second round of passes compiles nothing, and the limit does not leave a pass uncompiled."""
    torch._dynamo.reset()
    model, pieces = network(), []
    compiled = type(model.blocks[0]).compile
    monkeypatch.setattr(
        type(model.blocks[0]),
        "compile",
        lambda block, **how: compiled(block, **how, backend=lambda graph, _: pieces.append(1) or graph),
    )
    model = build_backbone(SMALL, RuntimeSpec(compile=True), copy_of=model)
    x, t, s, y = inputs(8)

    def passes() -> None:
        model(x, Times.dual(t, s, mask_of(8)), y).velocity.sum().backward()
        with torch.no_grad():
            model(x, Times.per_sample(t), y, taps=(2,), stop_after=2)
            for size, scale in itertools.product((6, 3), (1.0, 2.0)):
                velocity_field(model, y[:size], null=texts(1, seed=9), scale=scale)(x[:size], 0.5)

    passes()
    first = len(pieces)
    passes()
    # Two of student and teacher, and three of each sampler's pass; torch's own limit is 8.
    assert len(pieces) == first > 8


def test_merging_keeps_separate_texts_and_distinguishes_masks() -> None:
    y = texts(4)
    assert shared(y).rows.tolist() == [0, 1, 2, 3] and len(shared(y[:1]).distinct) == 1
    twice = Text(y.features[:1].expand(4, -1, -1), torch.tensor([[True] * 5, [True] * 4 + [False]] * 2))
    merged = shared(twice)
    assert len(merged.distinct) == 2 and torch.equal(merged.mask, twice.mask)


def test_initial_weights_are_zero_modulation_or_those_of_pytorch() -> None:
    """`released` has PyTorch's distribution: its standard deviation and its bounds, biases included."""
    model = MMDiT(SMALL)
    initialize(model, Streams(7))
    x, t, _, y = inputs()
    assert not model(x, Times.per_sample(t), y).velocity.any()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pytorch = {name: p.detach().clone() for name, p in MMDiT(SMALL).named_parameters()}
    initialize(model, Streams(7), initial="released")
    for name, parameter in model.state_dict().items():
        if name == "pos_embed":
            continue
        bound = pytorch[name].abs().max()
        assert parameter.abs().max().item() == pytest.approx(bound.item(), rel=0.25), name
        if parameter.numel() > 1000:
            assert parameter.std().item() == pytest.approx(pytorch[name].std().item(), rel=0.1), name
    again = MMDiT(SMALL)
    initialize(again, Streams(7), initial="released")
    assert all(torch.equal(p, again.state_dict()[name]) for name, p in model.named_parameters())


def test_each_network_names_the_kind_for_the_other_condition() -> None:
    x, t, _, y = inputs()
    labels = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"text features, but got Tensor; labels need backbone[.]kind"):
        network()(x, Times.per_sample(t), labels)
    sit = SiT(SiTConfig(Size(2, 32, 2), 2, (3, 8, 12), 5))
    with pytest.raises(TypeError, match=r"labels, .* but got Text; text needs backbone[.]kind"):
        sit(x, Times.per_sample(t), y)
