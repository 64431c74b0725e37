"""Selection of a level per token, compared with indexing: values bit for bit, gradients in float64."""

from __future__ import annotations

import pytest
import torch

from harness.backbone.times import Times


def times(levels: int, tokens: int = 7, batch: int = 3) -> Times:
    random = torch.Generator().manual_seed(levels)
    which = torch.randint(0, levels, (batch, tokens), generator=random)
    return Times(torch.rand(batch, levels, generator=random), which.bool() if levels == 2 else which)


@pytest.mark.parametrize("levels", [2, 3, 5])
def test_select_gives_each_token_the_values_of_its_level(levels: int) -> None:
    chosen = times(levels)
    values = torch.randn(3, levels, 4, generator=torch.Generator().manual_seed(0))
    selected = chosen.select(values)
    for sample in range(3):
        for token in range(7):
            assert torch.equal(selected[sample, token], values[sample, int(chosen.which[sample, token])])
    assert torch.equal(chosen.per_token_levels(), chosen.levels.gather(1, chosen.which.long()))


@pytest.mark.parametrize("levels", [2, 4])
def test_gradient_of_a_level_is_the_sum_over_its_tokens(levels: int) -> None:
    chosen = times(levels)
    values = torch.zeros(3, levels, 4, dtype=torch.float64, requires_grad=True)
    incoming = torch.randn(3, 7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    chosen.select(values).backward(incoming)
    for level in range(levels):
        has_level = (chosen.which.long() == level)[:, :, None]
        torch.testing.assert_close(values.grad[:, level], (incoming * has_level).sum(1))


@pytest.mark.parametrize(("levels", "dtype"), [(2, torch.bool), (4, torch.int64)])
def test_gradient_is_exact_when_bfloat16_sums_would_stall(levels: int, dtype: torch.dtype) -> None:
    """Added one by one, 258 ones would stop at 256, beyond which bfloat16 has steps of 2."""
    chosen = Times(torch.rand(1, levels), torch.zeros(1, 258, dtype=dtype))
    values = torch.zeros(1, levels, 1, dtype=torch.bfloat16, requires_grad=True)
    chosen.select(values).backward(torch.ones(1, 258, 1, dtype=torch.bfloat16))
    assert values.grad[0, :, 0].tolist() == [258] + [0] * (levels - 1)


def test_shares_count_the_tokens_of_each_level() -> None:
    which = torch.tensor([[True, False, False, True, False], [False] * 5])
    dual = Times(torch.rand(2, 2), which)
    torch.testing.assert_close(dual.shares(), torch.tensor([[0.6, 0.4], [1.0, 0.0]]))
    counted = torch.tensor([[True, True, True, False, False], [False, True, True, True, True]])
    torch.testing.assert_close(dual.shares(counted), torch.tensor([[2 / 3, 1 / 3], [1.0, 0.0]]))
    each = Times(torch.rand(2, 5))
    torch.testing.assert_close(each.shares(), torch.full((2, 5), 0.2))
    expected = torch.tensor([[1 / 3] * 3 + [0.0] * 2, [0.0] + [0.25] * 4])
    torch.testing.assert_close(each.shares(counted), expected)


def test_select_returns_its_input_for_one_level_and_for_one_per_token() -> None:
    values = torch.randn(2, 5, 3)
    assert Times(torch.rand(2, 5)).select(values) is values
    levels = torch.rand(2, 5)
    assert Times.per_token(levels).per_token_levels() is levels
