"""Alignment terms under bfloat16 autocast, compared with float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.encoders.base import attention_of
from harness.runtime.precision import product
from methods.common.alignment import distance, relations
from methods.dispersive import squared_distances
from methods.haste import attention_loss

ROWS = torch.Generator().manual_seed(5)


def nearly_equal(*shape: int) -> Tensor:
    """Return tokens that are nearly equal, like those of a trained network, so that differences are small."""
    return 1 + 0.05 * torch.randn(*shape, generator=ROWS)


def test_product_is_float32_when_inside_autocast() -> None:
    a, b = nearly_equal(2, 64, 96), nearly_equal(2, 96, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert (a @ b).dtype == torch.bfloat16
        found = product(a.bfloat16(), b)
    exact = a.bfloat16().double() @ b.double()
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.double(), exact, rtol=1e-6)
    # Costs are counted on the meta device.
    assert product(a.to("meta"), b.to("meta")).shape == (2, 64, 64)


def cosines(x: Tensor) -> Tensor:
    unit = x / x.norm(dim=-1, keepdim=True)
    return unit @ unit.transpose(1, 2)


@pytest.mark.parametrize(
    ("measured", "exact"),
    [
        (relations, cosines),
        (lambda x: squared_distances(x), lambda x: torch.cdist(x, x).square()),
        (lambda x: attention_of(x[:, None], x[:, None]), lambda x: (x @ x.mT / 96**0.5).softmax(-1)[:, None]),
        (
            lambda x: distance("nt_xent", x, x.flip(1)),
            lambda x: torch.stack(
                [
                    -(c / 0.1).log_softmax(-1).diagonal()
                    for c in (x / x.norm(dim=-1, keepdim=True))
                    @ (x.flip(1) / x.norm(dim=-1, keepdim=True).flip(1)).mT
                ]
            ),
        ),
    ],
    ids=["relations", "dispersive", "attention", "nt_xent"],
)
def test_similarities_are_exact_when_inside_autocast(measured, exact) -> None:
    x = nearly_equal(2, 64, 96)
    with torch.autocast("cpu", torch.bfloat16):
        found = measured(x)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.double(), exact(x.double()), atol=2e-5)


def test_attention_loss_is_exact_when_inside_autocast() -> None:
    q, k = nearly_equal(2, 3, 16, 8), nearly_equal(2, 3, 16, 8)
    maps = torch.rand(2, 1, 3, 16, 16, generator=ROWS).softmax(-1)
    with torch.autocast("cpu", torch.bfloat16):
        found = attention_loss([(q, k)], maps)
    logits = q.double() @ k.double().mT / 8**0.5
    expected = -(maps[:, 0].double() * logits.log_softmax(-1)).sum(-1).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
