"""FLOPs of a SiT on paper."""

from __future__ import annotations

from harness.backbone.sit import SiTConfig
from harness.backbone.sizes import SIZES

S2 = SiTConfig(SIZES["S"], 2, (4, 32, 32), 1000)


def forward_flops(config: SiTConfig, levels: int, depth: int) -> int:
    """Compute on paper the FLOPs of one sample: 2 per multiply-add of embeddings, blocks and final layer."""
    _, D, _ = config.size
    T, C, p = config.tokens, config.shape[0], config.patch
    block = 12 * T * D * D + 2 * T * T * D + levels * 6 * D * D
    final = levels * 2 * D * D + T * D * p * p * C if depth == config.size.depth else 0
    return 2 * (T * D * p * p * C + levels * (256 * D + D * D) + depth * block + final)
