"""Samples of a network from fixed latents and labels: the same for every method and step.

A network with an extra token is integrated over image and token together, one vector per sample (REG samplers.py); the image's
noise is that of every other method, and guidance, where there is any, guides both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from harness.backbone.sit import Prediction
from harness.backbone.times import Times
from harness.config.spec import EvalSpec
from harness.flow.samplers import SAMPLERS, velocity_field
from harness.runtime.random_streams import Streams

Decode = Callable[[Tensor], Tensor]


def draw_samples(
    model: nn.Module, spec: EvalSpec, shape: tuple[int, ...], classes: int, device: torch.device
) -> Iterator[Tensor]:
    """Samples as uint8 (B, C, H, W) on the CPU, in batches; sample i depends on `spec.seed` and i alone."""
    streams = Streams(spec.seed)
    for start in range(0, spec.samples, spec.batch_size):
        index = np.arange(start, min(start + spec.batch_size, spec.samples))
        y = sample_labels(spec, streams, index, classes)
        yield draw_batch(model, spec, shape, classes, device, index, y)


def draw_batch(
    model: nn.Module,
    spec: EvalSpec,
    shape: tuple[int, ...],
    classes: int,
    device: torch.device,
    index: np.ndarray,
    labels: Tensor,
    decode: Decode | None = None,
) -> Tensor:
    """The samples of these numbers and labels (B,), uint8 (B, C, H, W) on the CPU."""
    return draw_pixels(model, spec, shape, classes, device, index, labels, decode).cpu()


@torch.no_grad()
def draw_pixels(
    model: nn.Module,
    spec: EvalSpec,
    shape: tuple[int, ...],
    classes: int,
    device: torch.device,
    index: np.ndarray,
    labels: Tensor,
    decode: Decode | None = None,
) -> Tensor:
    """The same on the device; `decode` makes images of a network's latents (B, c, h, w)."""
    streams, extra = Streams(spec.seed), getattr(getattr(model, "config", None), "extra", 0)
    field = jointly(model, shape) if extra else model
    v = velocity_field(
        field,
        labels.to(device),
        null=classes,
        scale=spec.guidance,
        low=spec.guidance_low,
        high=spec.guidance_high,
    )
    z = _normal(streams, "eval_noise", index, shape, extra).to(device)
    noise = lambda i, x: _normal(streams, f"sde_noise/{i}", index, shape, extra).to(x)  # noqa: E731
    with torch.autocast(device.type, torch.bfloat16, enabled=spec.precision == "bfloat16"):
        x = SAMPLERS[spec.sampler](v, z, spec.sampler_steps, noise=noise)
    x = x[:, : math.prod(shape)].unflatten(1, shape) if extra else x
    x = x if decode is None else decode(x.float())
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def jointly(model: nn.Module, shape: tuple[int, ...]) -> Callable[[Tensor, Times, Tensor], Prediction]:
    """A network over vectors (B, C H W + E): the image, then its extra token."""

    def field(x: Tensor, times: Times, y: Tensor) -> Prediction:
        image, extra = x.tensor_split([math.prod(shape)], dim=1)
        found = model(image.unflatten(1, shape), times, y, extra=extra)
        return Prediction(torch.cat([found.velocity.flatten(1), found.extra], dim=1), {})

    return field


def _normal(streams: Streams, name: str, index: np.ndarray, shape: tuple[int, ...], extra: int) -> Tensor:
    """Standard normal, (B, *shape); with an extra token (B, C H W + E), the image's part the same."""
    image = streams.normal(name, index, shape)
    if not extra:
        return image
    return torch.cat([image.flatten(1), streams.normal(f"{name}/extra", index, (extra,))], dim=1)


def sample_labels(spec: EvalSpec, streams: Streams, index: np.ndarray, classes: int) -> Tensor:
    """Balanced: i mod classes. Random: uniform, as most published numbers have it (balanced lowers FID by about 0.1)."""
    if spec.labels == "balanced":
        return torch.from_numpy(index % classes)
    return streams.integers("eval_label", index, classes)
