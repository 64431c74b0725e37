"""Tensors on their way from the host to a device."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(x: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on a device.

    A GPU copies it from page-locked memory, so that the host does not wait for the work queued before it.
    """
    if device.type == "cuda" and x.device.type == "cpu":
        return x.contiguous().pin_memory().to(device, non_blocking=True)
    return x.to(device)
