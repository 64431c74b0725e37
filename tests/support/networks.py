"""A small SiT with random weights."""

from __future__ import annotations

import torch

from harness.backbone.sit import SiT, SiTConfig
from harness.backbone.sizes import Size

SMALL = SiTConfig(Size(3, 32, 2), 2, (3, 8, 12), 5)


def network(config: SiTConfig = SMALL, seed: int = 0) -> SiT:
    """Return a SiT with random weights; the released initialisation sets many of them to zero."""
    model = SiT(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()
