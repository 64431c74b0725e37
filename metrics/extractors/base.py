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
        images = images.to(self.device)
        if images.shape[1] == 1:
            images = images.expand(-1, self.channels, -1, -1)
        if images.shape[1] != self.channels:
            raise MetricError(
                f"extractor '{self.name}' takes images of {self.channels} channels; "
                f"these have {images.shape[1]}"
            )
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


def check_images(images: Any) -> None:
    """Raise `MetricError` unless images are a uint8 tensor (B, 1 or 3, H, W) with B, H, W > 0."""
    if not isinstance(images, Tensor):
        raise MetricError(f"images are a {type(images).__name__}; expected a uint8 tensor (B, C, H, W)")
    if images.dtype != torch.uint8:
        raise MetricError(
            f"images are {str(images.dtype).removeprefix('torch.')}; "
            "give bytes, uint8 in 0..255, as saved in a file"
        )
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.numel() == 0:
        raise MetricError(
            f"images have shape {tuple(images.shape)}; expected (B, C, H, W) with 1 or 3 channels"
        )


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
