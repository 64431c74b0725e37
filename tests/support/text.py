"""A small MMDiT with random weights, and texts for it."""

from __future__ import annotations

import torch

from harness.backbone.condition import Text, TextShape
from harness.backbone.mmdit import MMDiT, MMDiTConfig
from harness.backbone.sizes import Size

TEXT = TextShape(dim=12, length=5)
SMALL = MMDiTConfig(Size(3, 32, 2), 2, (3, 8, 12), 5, text=TEXT)


def network(config: MMDiTConfig = SMALL, seed: int = 0) -> MMDiT:
    """Return an MMDiT with random weights; those of adaLN-Zero would hide the text."""
    model, generator = MMDiT(config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def texts(count: int, shape: TextShape = TEXT, *, seed: int = 0, masked: bool = False) -> Text:
    """Return random texts; with `masked`, text i has 1 + i mod L real tokens."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, shape.length, shape.dim, generator=generator)
    real = torch.arange(shape.length) <= torch.arange(count)[:, None] % shape.length
    return Text(features, real if masked else None)
