"""Tiny runs on texts: every class of the digits has a caption with random features."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.backbone.condition import Text, TextShape
from harness.config.spec import RunSpec
from tests.support.runs import tiny
from tests.support.text import texts

SHAPE = TextShape(dim=12, length=5)
EMPTY = 10
"""The row of the empty caption, which is the null label of the digits."""


@cache
def captions() -> Text:
    """Return the captions of the ten digits, of different lengths, and the empty one."""
    return texts(EMPTY + 1, SHAPE, masked=True)


def use_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the labels of runs with the captions of their classes, wherever a network is given them."""
    from harness.assembly import build, condition
    from harness.data.feed import Feed
    from harness.flow import sampling

    fed, field = Feed.batch, sampling.velocity_field

    def batch(feed: Feed, index: np.ndarray, step: int = 1) -> Any:
        found = fed(feed, index, step)
        return replace(found, y=captions()[found.y], given=captions()[found.label])

    # Any: the arguments of `velocity_field`.
    def velocity_field(model: Any, y: Tensor, *, null: int, **guidance: Any) -> Any:
        return field(model, captions()[y], null=captions()[[null]], **guidance)

    monkeypatch.setattr(build, "text_shape", lambda *_: SHAPE)
    monkeypatch.setattr(condition, "check_condition", lambda *_: None)
    monkeypatch.setattr(Feed, "batch", batch)
    monkeypatch.setattr(sampling, "velocity_field", velocity_field)


def tiny_text(*overrides: str) -> RunSpec:
    return tiny("backbone.kind=mmdit", *overrides)


def step_of_text(spec: RunSpec, size: int, first: int = 0) -> tuple[np.ndarray, Tensor, Text, Tensor]:
    """Return indices, samples, texts and labels of a batch."""
    index = np.arange(first, first + size)
    labels = torch.from_numpy(index % EMPTY)
    x0 = torch.randn(size, 1, 8, 8, generator=torch.Generator().manual_seed(first))
    return index, x0, captions()[labels], labels
