"""Backbone sizes: the published ones exactly (SiT, models.py), and small ones that train on a CPU."""

from __future__ import annotations

from typing import NamedTuple


class Size(NamedTuple):
    """Blocks, channels and attention heads of a backbone."""

    depth: int
    width: int
    heads: int


SIZES = {
    "pico": Size(4, 64, 4),
    "nano": Size(6, 96, 4),
    "micro": Size(8, 192, 6),
    "S": Size(12, 384, 6),
    "B": Size(12, 768, 12),
    "L": Size(24, 1024, 16),
    "XL": Size(28, 1152, 16),
}
