"""Tokens that skip blocks: the same tokens as an attention without them, by position, in both networks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from harness.backbone.config import BackboneConfig
from harness.backbone.routing import Route
from harness.backbone.times import Times
from methods.common.method import Needs
from tests.support.conformance import CONFIG, OF_TEXT, batch, network, suited

BATCH = 4
TOKENS = CONFIG.tokens
KEPT = torch.stack(
    [torch.randperm(TOKENS, generator=torch.Generator().manual_seed(i))[:10] for i in range(BATCH)]
)
KEPT = KEPT.sort(dim=1).values
STAYS = torch.zeros(BATCH, TOKENS, dtype=torch.bool).scatter(1, KEPT, True)
BOTH = pytest.mark.parametrize("config", [CONFIG, OF_TEXT], ids=["sit", "mmdit"])


def given(config: BackboneConfig, levels: int) -> tuple[Tensor, Times, object]:
    """Return inputs with one time per sample, two, or one per token."""
    samples = batch(Needs(), BATCH, backbone=config)
    t = torch.rand(BATCH, levels, generator=torch.Generator().manual_seed(9))
    which = torch.arange(TOKENS).expand(BATCH, -1) % 3 == 0 if levels == 2 else None
    return samples.x0, Times(t, which), samples.y


@BOTH
@pytest.mark.parametrize("levels", [1, 2, TOKENS])
@pytest.mark.parametrize("positions", ["sincos", "rotary"])
@torch.no_grad()
def test_routed_block_equals_one_with_tokens_that_do_not_attend(
    config: BackboneConfig, levels: int, positions: str
) -> None:
    """Attention in two groups also separates the tokens that stay. Place, time and group are kept."""
    config = replace(config, positions=positions)
    (x, times, y), net, groups = given(config, levels), network(0, config), (~STAYS).long()
    before = net(x, times, y, taps=(1,), stop_after=1).hidden[1]
    first = net(x, times, y, taps=(1,), stop_after=1, groups=groups).hidden[1]
    routed = net(x, times, y, taps=(1,), stop_after=1, route=Route(1, 1, KEPT), groups=groups).hidden[1]
    torch.testing.assert_close(routed[STAYS], first[STAYS])
    later = net(x, times, y, taps=(1, 2), stop_after=2, route=Route(2, 2, KEPT)).hidden
    assert torch.equal(later[1], before) and torch.equal(later[2][~STAYS], before[~STAYS])
    assert not torch.allclose(later[2][STAYS], before[STAYS])


@BOTH
@torch.no_grad()
def test_route_that_keeps_every_token_is_no_route(config: BackboneConfig) -> None:
    (x, times, y), every = given(config, 2), torch.arange(TOKENS).expand(BATCH, -1)
    net = network(0, config)
    routed, plain = net(x, times, y, route=Route(2, 3, every)), net(x, times, y)
    torch.testing.assert_close(routed.velocity, plain.velocity, atol=1e-6, rtol=1e-5)


@BOTH
@torch.no_grad()
def test_tokens_that_skip_have_no_influence_inside_the_route(config: BackboneConfig) -> None:
    """Another value of a skipping token at the start of the route changes no token that stays."""
    (x, times, y), route = given(config, 2), Route(1, 2, KEPT)
    net = network(0, config)
    mask = config.spread(STAYS.float()).bool()
    changed = torch.where(mask, x, x + 1)
    ours, theirs = (net(one, times, y, taps=(1, 2), stop_after=2, route=route).hidden for one in (x, changed))
    for layer in (1, 2):
        assert torch.equal(ours[layer][STAYS], theirs[layer][STAYS])
        assert not torch.allclose(ours[layer][~STAYS], theirs[layer][~STAYS])


@torch.no_grad()
def test_extra_token_stays_in_the_route() -> None:
    config = suited(Needs(summary=True), CONFIG)
    (x, times, y), route = given(config, 1), Route(1, 2, KEPT)
    net, extra = network(0, config), torch.ones(BATCH, config.extra)
    taps = [net(x, times, y, taps=(2,), extra=e, route=route).hidden[2] for e in (extra, extra + 1)]
    assert taps[0].shape[1] == 1 + TOKENS
    stays = torch.cat([torch.ones(BATCH, 1, dtype=torch.bool), STAYS], dim=1)
    assert not torch.isclose(*taps)[stays].all(dim=-1).any() and torch.equal(taps[0][~stays], taps[1][~stays])


@BOTH
def test_skipped_tokens_cost_nothing_inside_the_route(config: BackboneConfig) -> None:
    """By PyTorch's counter, a token that skips a block saves the products of the block's weights."""
    (x, times, y), net = given(config, 1), network(0, config)
    counts = []
    for route in (None, Route(2, 3, KEPT)):
        with FlopCounterMode(display=False) as counter:
            net(x, times, y, route=route)
        counts.append(counter.get_total_flops())
    width, gone = config.size.width, TOKENS - KEPT.shape[1]
    # 12 width^2 weights per token, 2 FLOPs each; attention between two kinds of tokens falls further.
    assert counts[0] - counts[1] >= 2 * BATCH * 2 * gone * 12 * width**2


@BOTH
def test_gradient_reaches_every_token_of_the_input(config: BackboneConfig) -> None:
    (x, times, y), net = given(config, 1), network(0, config)
    x = x.clone().requires_grad_()
    net(x, times, y, route=Route(2, 3, KEPT)).velocity.square().mean().backward()
    assert x.grad is not None and x.grad.flatten(1).abs().amin() > 0


@BOTH
@torch.no_grad()
def test_dropped_sample_equals_a_pass_without_the_fused_blocks(config: BackboneConfig) -> None:
    """Its text, if it has one, carries nothing of these blocks either. Other samples do not change."""
    config = replace(config, fused=(2, 3))
    (x, times, y), net = given(config, 1), network(0, config)
    dropped = torch.tensor([True, False, False, True])
    some, none, all_ = (
        net(x, times, y, taps=(2, 3), route=Route(2, 3, kept, which))
        for kept, which in ((KEPT, dropped), (KEPT[:, :0], None), (KEPT, None))
    )
    torch.testing.assert_close(some.velocity[dropped], none.velocity[dropped])
    torch.testing.assert_close(some.velocity[~dropped], all_.velocity[~dropped])
    assert not torch.isclose(none.velocity, all_.velocity).all(dim=-1).flatten(1).any()
    assert torch.equal(none.hidden[3], net(x, times, y, taps=(1,), stop_after=1).hidden[1])


@torch.no_grad()
def test_fusion_is_a_linear_layer_of_both_depths() -> None:
    """Tokens that skipped enter it as the mask token."""
    config = replace(CONFIG, fused=(2, 4))
    (x, times, y), net = given(config, 1), network(0, config)
    hidden = net(x, times, y, taps=(1, 4), route=Route(2, 4, KEPT)).hidden
    deep = torch.where(STAYS[:, :, None], hidden[4], net.fusions["4"].mask_token)
    weight, bias = net.fusions["4"].linear.weight, net.fusions["4"].linear.bias
    width = config.size.width
    fused = deep @ weight[:, :width].T + hidden[1] @ weight[:, width:].T + bias
    c = torch.nn.functional.silu(net.t_embedder(times.levels) + net.y_embedder(y)[:, None])
    expected, _ = net._velocity(x, fused, c, times, False)
    torch.testing.assert_close(net(x, times, y, route=Route(2, 4, KEPT)).velocity, expected)
    with pytest.raises(ValueError, match="the route has blocks 2 to 3, but this network fuses blocks 2 to 4"):
        net(x, times, y, route=Route(2, 3, KEPT))
