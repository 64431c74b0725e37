"""Backbone sizes: the published ones exactly, and small ones that train on a CPU."""

from __future__ import annotations

import re
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
TEXT_TO_IMAGE = {"T2I": Size(24, 768, 24)}
"""Published sizes of MMDiT: REPA's train_t2i.py (67f7145). The heads of a SiT follow from its width."""


def size_named(name: str) -> Size | None:
    """Return a size by its registered name, or by DEPTHxWIDTHxHEADS such as `6x64x4`; None for other names.

    Numbers have up to five digits.

    >>> size_named("6x64x4")
    Size(depth=6, width=64, heads=4)
    """
    numbers = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", name)
    if numbers is None:
        return SIZES.get(name) or TEXT_TO_IMAGE.get(name)
    size = Size(*map(int, numbers.groups()))
    return None if size.width % size.heads or size.width % 4 else size


def name_of_size(size: Size) -> str:
    """Return the registered name of a size, or DEPTHxWIDTHxHEADS."""
    named = SIZES | TEXT_TO_IMAGE
    return next((name for name, known in named.items() if known == size), "x".join(map(str, size)))
