"""Explicit attention for bfloat16 on a CPU: its error against PyTorch in float64, compared with PyTorch's own
in bfloat16."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.backbone.attention import WrittenOut, attention

SHAPE = (2, 3, 40, 16)


def drawn(sharp: float) -> tuple[list[Tensor], Tensor]:
    """Return q, k, v and a gradient in bfloat16. With a larger `sharp`, weights depend more on the last bits
    of scores."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = torch.randn(4, *SHAPE, generator=generator)
    return [tensor.bfloat16() for tensor in (sharp * q, sharp * k, v)], grad.bfloat16()


def values_and_gradients(f, given: list[Tensor], grad: Tensor, dtype: torch.dtype) -> list[Tensor]:
    leaves = [tensor.to(dtype).requires_grad_() for tensor in given]
    out = f(*leaves)
    return [out.detach().double(), *(g.double() for g in torch.autograd.grad(out, leaves, grad.to(dtype)))]


def errors(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]


@pytest.mark.parametrize("sharp", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_as_precise_as_the_fused_kernel(sharp: float, masked: bool) -> None:
    given, grad = drawn(sharp)
    group = torch.arange(SHAPE[2]) % 3
    mask = (group[:, None] == group[None, :]).expand(2, 1, -1, -1) if masked else None

    def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    exact = values_and_gradients(fused, given, grad, torch.float64)
    theirs = errors(values_and_gradients(fused, given, grad, torch.bfloat16), exact)
    ours = errors(
        values_and_gradients(lambda *qkv: attention(*qkv, mask), given, grad, torch.bfloat16), exact
    )
    assert max(ours) < 1.5 * max(theirs) < 0.05


def test_written_out_gradient_equals_that_of_torch() -> None:
    """In float32 no intermediate result is rounded further."""
    given, grad = drawn(1.0)
    exact = values_and_gradients(F.scaled_dot_product_attention, given, grad, torch.float64)
    ours = values_and_gradients(lambda *qkv: WrittenOut.apply(*qkv, None), given, grad, torch.float32)
    assert max(errors(ours, exact)) < 1e-6


@pytest.mark.parametrize("masked", [False, True])
def test_written_out_takes_keys_of_another_number_than_queries(masked: bool) -> None:
    """In float32, as the last block of a text-conditioned network asks: queries of the image only."""
    (q, k, v), grad = drawn(1.0)
    given, grad = [q[:, :, :25], k, v], grad[:, :, :25]
    mask = (torch.arange(SHAPE[2]) % 4 > 0).expand(2, 1, 1, -1) if masked else None
    fused = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # noqa: E731
    exact = values_and_gradients(fused, given, grad, torch.float64)
    ours = values_and_gradients(lambda *qkv: WrittenOut.apply(*qkv, mask), given, grad, torch.float32)
    assert max(errors(ours, exact)) < 1e-6


def test_mask_changes_no_bit_when_it_hides_nothing() -> None:
    given, grad = drawn(1.0)
    everything = torch.ones(2, 1, SHAPE[2], SHAPE[2], dtype=torch.bool)
    plain = values_and_gradients(attention, given, grad, torch.bfloat16)
    masked = values_and_gradients(lambda *qkv: attention(*qkv, everything), given, grad, torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(plain, masked, strict=True))


def test_scores_are_float32_when_inside_autocast() -> None:
    given, _ = drawn(4.0)
    with torch.autocast("cpu", torch.bfloat16):
        inside = attention(*given)
    assert torch.equal(inside, attention(*given))
