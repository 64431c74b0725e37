"""Products that stay in float32 under autocast.

Similarities are differences of nearly equal numbers. In bfloat16, cosines of similar tokens lose all
significant digits.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b in float32, also inside autocast, which would undo a plain `.float()`."""
    kind = a.device.type
    with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
        return a.float() @ b.float()
