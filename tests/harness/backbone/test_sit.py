"""The network, checked by closed forms, PyTorch's attention, and equivalent calls."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from harness.backbone.initialize import initialize
from harness.backbone.layers import gelu
from harness.backbone.sit import SiT, SiTConfig
from harness.backbone.sizes import SIZES, Size
from harness.backbone.times import Times
from harness.backbone.tokens import patchify, sincos, unpatchify
from harness.runtime.random_streams import Streams
from tests.support.networks import SMALL, network


def inputs(
    batch: int = 4, config: SiTConfig = SMALL
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *config.shape, generator=generator)
    t, s = torch.rand(2, batch, generator=generator)
    return x, t, s, torch.arange(batch) % (config.classes + 1)


@pytest.mark.parametrize(("size", "millions"), [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
def test_sizes_have_the_published_parameter_counts(size: str, millions: int) -> None:
    """Counts of the paper's Table 1, which include the frozen position code in the released code."""
    with torch.device("meta"):
        model = SiT(SiTConfig(SIZES[size], 2, (4, 32, 32), 1000, learn_sigma=True))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) in (millions, millions - 1)


def test_dual_times_equal_times_per_token() -> None:
    x, t, s, y = inputs()
    mask = torch.rand(4, SMALL.tokens, generator=torch.Generator().manual_seed(2)) < 0.3
    dual = Times.dual(t, s, mask)
    tau = torch.where(mask, s[:, None], t[:, None])
    assert torch.equal(dual.per_token_levels(), tau)
    model = network()
    torch.testing.assert_close(model(x, dual, y).velocity, model(x, Times.per_token(tau), y).velocity)
    levels = Times(torch.stack([t, s], 1), mask.long())
    torch.testing.assert_close(model(x, dual, y).velocity, model(x, levels, y).velocity)


def test_hidden_tokens_are_contiguous() -> None:
    """Elementwise operations are slower with another memory layout, in every block and modality."""
    for shape in ((3, 8, 12), (4, 16), (2, 3, 8, 8)):
        config = SiTConfig(Size(2, 32, 2), 2, shape, 5)
        x, t, _, y = inputs(config=config)
        prediction = network(config)(x, Times.per_sample(t), y, taps=(1, 2))
        assert all(hidden.is_contiguous() for hidden in prediction.hidden.values())


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gelu_is_the_tanh_approximation(compiled: bool) -> None:
    """The formula of Hendrycks and Gimpel (2016) and its derivative, computed in float64."""
    x = torch.linspace(-12, 12, 1001)
    exact = x.double().requires_grad_()
    u = math.sqrt(2 / math.pi) * (exact + 0.044715 * exact**3)
    expected = exact * (1 + torch.tanh(u)) / 2
    ours = x.clone().requires_grad_()
    found = (torch.compile(gelu) if compiled else gelu)(ours)
    for a, b in (
        (found, expected),
        *zip(*(torch.autograd.grad(o.sum(), v) for o, v in ((found, ours), (expected, exact))), strict=True),
    ):
        torch.testing.assert_close(a.double(), b, rtol=1e-6, atol=2e-6)


def test_dual_times_equal_one_time_when_both_are_equal() -> None:
    x, t, _, y = inputs()
    single = network()(x, Times.per_sample(t), y).velocity
    mixed = network()(x, Times.dual(t, t, torch.ones(4, SMALL.tokens, dtype=torch.bool)), y).velocity
    torch.testing.assert_close(single, mixed)


def test_stop_after_gives_the_hidden_tokens_of_a_full_pass() -> None:
    x, t, _, y = inputs()
    model, times = network(), Times.per_sample(t)
    full = model(x, times, y, taps=(1, 2, 3))
    early = model(x, times, y, taps=(2,), stop_after=2)
    assert early.velocity is None and set(early.hidden) == {2}
    assert torch.equal(early.hidden[2], full.hidden[2])
    assert full.hidden[1].shape == (4, SMALL.tokens, 32)


def test_groups_separate_attention() -> None:
    """Changing the pixels of one group leaves the outputs of the other group unchanged."""
    x, t, _, y = inputs()
    groups = (torch.arange(SMALL.tokens) % 2).expand(4, -1)
    group = SMALL.spread(groups.float()).bool()
    other = torch.where(group, x + 1.0, x)
    model, times = network(), Times.per_sample(t)
    before, after = (model(pixels, times, y, groups=groups).velocity for pixels in (x, other))
    assert torch.equal(before.masked_select(~group), after.masked_select(~group))
    assert not torch.allclose(before.masked_select(group), after.masked_select(group))
    one_group = model(x, times, y, groups=torch.zeros_like(groups)).velocity
    torch.testing.assert_close(one_group, model(x, times, y).velocity)


def test_attention_is_softmax_of_scaled_products() -> None:
    block = network().blocks[0].attn
    h = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(3))
    q, k, v = block.qkv(h).double().chunk(3, dim=-1)
    heads = [
        torch.softmax(a @ b.transpose(1, 2) / math.sqrt(16), dim=-1) @ c
        for a, b, c in zip(q.split(16, -1), k.split(16, -1), v.split(16, -1), strict=True)
    ]
    expected = F.linear(torch.cat(heads, -1), block.proj.weight.double(), block.proj.bias.double())
    torch.testing.assert_close(block(h, None)[0], expected.float())


def test_patchify_and_unpatchify_round_trip() -> None:
    x = torch.arange(2 * 3 * 8 * 12).reshape(2, 3, 8, 12)
    tokens = patchify(x, (2, 2))
    assert tokens.shape == (2, 24, 12)
    # Row 1, column 1 of a grid of 4 x 6.
    assert tokens[0, 7].tolist() == x[0, :, 2:4, 2:4].flatten().tolist()
    reordered = tokens.reshape(2, 24, 3, 2, 2).permute(0, 1, 3, 4, 2).reshape(2, 24, 12)
    assert torch.equal(unpatchify(reordered, (2, 2), (8, 12)), x)


def test_position_code_is_unique_and_bounded() -> None:
    code = sincos(64, (5, 7))[0]
    assert code.abs().max() <= 1
    assert torch.cdist(code, code).fill_diagonal_(1.0).min() > 0.1
    # The second half does not depend on the column.
    torch.testing.assert_close(code[:7, 32:], code[:1, 32:].expand(7, -1))


def test_initial_weights_depend_only_on_name_and_seed() -> None:
    a, b = SiT(SMALL), SiT(SiTConfig(Size(2, 32, 2), 2, (3, 8, 12), 5))
    for model in (a, b):
        initialize(model, Streams(7))
    shallow = b.state_dict()
    assert all(torch.equal(value, a.state_dict()[name]) for name, value in shallow.items())
    qkv = a.blocks[0].attn.qkv.weight
    bound = math.sqrt(6 / (32 + 96))
    assert qkv.abs().max() <= bound and qkv.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert a.y_embedder.embedding_table.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert not any(p.any() for p in (a.final_layer.linear.weight, a.blocks[1].adaLN_modulation[1].weight))
    x, t, _, y = inputs()
    # adaLN-Zero: the untrained network predicts zero.
    assert not a(x, Times.per_sample(t), y).velocity.any()
