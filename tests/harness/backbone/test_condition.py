"""Conditions: texts by rows, caption drop, and the texts that the constructor refuses."""

from __future__ import annotations

import pytest
import torch

from harness.backbone.condition import Text, concatenated


def text(batch: int = 3, length: int = 4, dim: int = 2) -> Text:
    random = torch.Generator().manual_seed(0)
    mask = torch.arange(length) <= torch.arange(batch)[:, None]
    return Text(torch.randn(batch, length, dim, generator=random), mask)


def test_rows_of_texts_keep_features_and_mask() -> None:
    some = text()
    for rows in (slice(1, 3), torch.tensor([1, 2]), torch.tensor([False, True, True]), [1, 2]):
        chosen = some[rows]
        assert torch.equal(chosen.features, some.features[1:]) and torch.equal(chosen.mask, some.mask[1:])
    assert len(some[:1]) == 1 and some[:1].mask.tolist() == [[True, False, False, False]]


def test_dropped_captions_have_features_and_mask_of_the_empty_caption() -> None:
    some, empty = text(), Text(torch.full((1, 4, 2), 7.0), torch.tensor([[True, True, False, False]]))
    dropped = some.where(torch.tensor([False, True, False]), empty)
    assert torch.equal(dropped.features[1], empty.features[0]) and torch.equal(dropped.mask[1], empty.mask[0])
    for kept in (0, 2):
        assert torch.equal(dropped.features[kept], some.features[kept])
        assert torch.equal(dropped.mask[kept], some.mask[kept])


def test_absent_mask_counts_all_tokens_beside_a_given_one() -> None:
    plain = Text(torch.zeros(2, 4, 2))
    both = concatenated(plain, text())
    assert both.mask[:2].all() and torch.equal(both.mask[2:], text().mask)
    assert concatenated(plain, plain).mask is None
    assert plain.where(torch.tensor([True, False]), text()[:1]).mask.sum(1).tolist() == [1, 4]


def test_expanded_text_is_one_text_for_all_samples() -> None:
    spread = text()[:1].expand(5)
    assert len(spread) == 5 and spread.features.stride(0) == 0
    assert all(torch.equal(spread.features[i], text().features[0]) for i in range(5))


@pytest.mark.parametrize(
    ("features", "mask", "reason"),
    [
        (torch.zeros(2, 3), None, r"\(B, L, D\)"),
        (torch.zeros(2, 3, 4, dtype=torch.int64), None, "float"),
        (torch.zeros(2, 0, 4), None, "at least one token"),
        (torch.zeros(2, 3, 4), torch.ones(2, 4, dtype=torch.bool), r"bool \(2, 3\), but got bool \(2, 4\)"),
        (torch.zeros(2, 3, 4), torch.ones(2, 3), "but got float32"),
        (torch.zeros(2, 3, 4), torch.tensor([[True] * 3, [False] * 3]), "text 1 of 2 has no real token"),
    ],
)
def test_constructor_refuses_texts_without_meaning(
    features: torch.Tensor, mask: torch.Tensor | None, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        Text(features, mask)
