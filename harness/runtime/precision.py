"""What autocast may not take in half precision.

Similarities are differences of numbers that are nearly equal: of cosines in bfloat16 nothing is left where
tokens are alike.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32, inside autocast too, where `.float()` alone would be undone."""
    kind = a.device.type
    with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
        return a.float() @ b.float()
