"""The image extractor: a frozen network with a name, a checksum and a documented preprocessing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from metrics.value import MetricError


@dataclass(frozen=True)
class Extractor:
    """A function from images uint8 (B, C, H, W) to features float32 (B, dim) on `device`.

    It computes in plain float32, independent of the caller's settings. Grey images are repeated to 3 channels
    for a network that takes 3. Raises `MetricError` for images of another type, shape or number of channels.
    """

    name: str
    """Name in a metric such as `fd:<name>`."""
    dim: int
    """Number of features."""
    sha256: str
    """Checksum of the weights file, or of the weights trained on this data set."""
    preprocessing: str
    """Description of the steps from pixels to the network's input."""
    channels: int
    device: torch.device
    # Any: a tensor or a mapping of tensors, as the network returns it.
    network: Callable[[Tensor], Any]
    """Function from uint8 (B, channels, H, W) on `device` to features (B, dim), or to several outputs by
    name."""
    output: str = "features"
    """Name of the output that holds the features."""
    beside: Mapping[str, int] = field(default_factory=dict)
    """Widths of the network's other outputs, by name."""
    accuracy: float | None = None
    """Accuracy on held-out data, for a classifier trained on this data set."""
    counted: int | None = None
    """Number of outputs treated as logits, when given in the extractor's name."""

    def __call__(self, images: Tensor) -> Tensor:
        return self.outputs(images)[self.output]

    @torch.no_grad()
    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Return all outputs of one pass of the network, float32 (B, width) by name."""
        check_images(images)
        images = with_channels(images.to(self.device), self.channels, "images", self.name)
        with exact_float32(self.device):
            returned = self.network(images)
        named = returned if isinstance(returned, Mapping) else {self.output: returned}
        return {name: x.float() for name, x in named.items()}

    def sibling(self, output: str) -> Extractor:
        """Return the extractor of another output of this network.

        Raises `MetricError` for an unknown name.
        """
        if output not in self.beside:
            known = ", ".join([self.output, *self.beside])
            raise MetricError(f"extractor '{self.name}' has no output '{output}' (known: {known})")
        others = {**self.beside, self.output: self.dim}
        dim = others.pop(output)
        return replace(self, name=f"{self.name}-{output}", dim=dim, output=output, beside=others)


# Any: whatever the caller gives.
def check_images(images: Any) -> None:
    """Raise `MetricError` unless images are a uint8 tensor (B, 1 or 3, H, W) with B, H, W > 0."""
    check_bytes(images, "images", "B, C, H, W")


def check_bytes(given: Any, kind: str, axes: str) -> None:
    """Raise `MetricError` unless a batch is a non-empty uint8 tensor of these axes with 1 or 3 channels.

    The last axes are C, H and W; `kind` names the batch in the error.
    """
    if not isinstance(given, Tensor):
        raise MetricError(f"{kind} are a {type(given).__name__}; expected a uint8 tensor ({axes})")
    if given.dtype != torch.uint8:
        raise MetricError(
            f"{kind} are {str(given.dtype).removeprefix('torch.')}; "
            "give bytes, uint8 in 0..255, as saved in a file"
        )
    if given.ndim != axes.count(",") + 1 or given.shape[-3] not in (1, 3) or given.numel() == 0:
        raise MetricError(f"{kind} have shape {tuple(given.shape)}; expected ({axes}) with 1 or 3 channels")


def with_channels(given: Tensor, channels: int, kind: str, name: str) -> Tensor:
    """Return a batch (..., C, H, W) with the number of channels that a network takes; grey is repeated.

    Raises `MetricError` for another number, with the `name` of the extractor.
    """
    if given.shape[-3] == 1:
        given = given.expand(*given.shape[:-3], channels, *given.shape[-2:])
    if given.shape[-3] != channels:
        raise MetricError(
            f"extractor '{name}' takes {kind} of {channels} channels; these have {given.shape[-3]}"
        )
    return given


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Disable autocast, TF32 and cuDNN's choice of kernels by timing, so that features are reproducible."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = False
    try:
        with (
            cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
            torch.autocast(device.type, enabled=False),
        ):
            yield
    finally:
        matmul.allow_tf32 = before
