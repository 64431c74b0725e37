"""Sampling from a network, with fixed latents and conditions that are the same for every method and step.

If a network has an extra token, image and token are integrated together, as one vector per sample (REG
samplers.py). The image has the same noise as with every other method, and guidance applies to both. The same
holds for further channels (ReDi), which are left out of the samples at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.backbone.condition import Condition, SharedText, Text
from harness.backbone.network import Prediction
from harness.backbone.times import Times
from harness.config.evaluation_spec import EvalSpec
from harness.errors import UserError
from harness.flow.samplers import SAMPLERS, Interval, Network, Rule, plain, velocity_field
from harness.runtime.random_streams import Streams
from harness.runtime.transfer import sent

Decode = Callable[[Tensor], Tensor]
Given = Callable[[np.ndarray], Tensor]
"""Function from indices of samples (B,) to clean samples, float32 (B, ...), whose given tokens they have."""
NOT_FINITE = "the network draws samples that are not finite"


@dataclass(frozen=True)
class Sampling:
    """All that samples depend on in addition to the network, their indices and their conditions."""

    spec: EvalSpec
    shape: tuple[int, ...]
    """The shape of a sample of the network."""
    null: int | Text
    """The condition of guidance without one: the null label, or the empty caption."""
    device: torch.device
    decode: Decode | None = None
    """Function from a network's latents (B, c, h, w) to images."""
    rule: Rule = plain
    """The method's velocity at sampling (`TrainingMethod.velocity`)."""
    given: Given | None = None
    """The samples whose given tokens these have, which a network with given tokens needs."""


def draw_batch(model: nn.Module, sampling: Sampling, index: np.ndarray, y: Condition) -> Tensor:
    """Return the samples with indices (B,) and conditions y, uint8 (B, C, H, W) on the CPU.

    Raises `UserError` if they are not finite.
    """
    return draw_pixels(model, sampling, index, y).cpu()


@torch.no_grad()
def draw(model: nn.Module, sampling: Sampling, index: np.ndarray, y: Condition) -> Tensor:
    """Return samples in [-1, 1], float32 on the device, whose values may be beyond it or not finite.

    Given tokens are in the samples unchanged.
    """
    spec, shape, device = sampling.spec, sampling.shape, sampling.device
    streams, config = Streams(spec.seed), getattr(model, "config", None)
    extra, features = getattr(config, "extra", 0), getattr(config, "features", 0)
    field = jointly(model, shape) if extra else model
    v = velocity_field(
        field,
        y.to(device),
        null=sampling.null.to(device) if isinstance(sampling.null, Text) else sampling.null,
        scale=spec.scale,
        low=spec.guidance_low,
        high=spec.guidance_high,
        rule=sampling.rule,
        own=Interval(spec.method_guidance, spec.method_guidance_low, spec.method_guidance_high),
    )
    normal = partial(_normal, streams, index=index, shape=shape, extra=extra, features=features)
    z = sent(normal("eval_noise"), device)
    keep = kept_given(model, sampling.given, index, device)
    if keep is not None:
        free = v
        v = lambda x, t: free(keep(x), t)  # noqa: E731
    # Drawn on the host while the device computes the step's velocity.
    noise = lambda i, x: sent(normal(f"sde_noise/{i}"), device).to(x)  # noqa: E731
    with torch.autocast(device.type, torch.bfloat16, enabled=spec.precision == "bfloat16"):
        x = SAMPLERS[spec.sampler](v, z, spec.sampler_steps, noise=noise, shift=spec.sampler_shift)
    x = x[:, : math.prod(shape)].unflatten(1, shape) if extra else x[:, : shape[0]] if features else x
    x = x if keep is None else keep(x)
    return (x if sampling.decode is None else sampling.decode(x.float())).float()


def kept_given(
    model: nn.Module, given: Given | None, index: np.ndarray, device: torch.device
) -> Callable[[Tensor], Tensor] | None:
    """Return a function that puts the given values into samples; None for a network without given tokens.

    Raises ValueError if such a network gets no given samples.
    """
    generated = getattr(getattr(model, "config", None), "generated_values", None)
    if generated is None:
        return None
    if given is None:
        raise ValueError("this network has given tokens: pass the samples that they are taken from")
    generated, clean = generated.to(device), given(index).to(device)
    return lambda x: torch.where(generated, x, clean.to(x.dtype))


def draw_pixels(model: nn.Module, sampling: Sampling, index: np.ndarray, y: Condition) -> Tensor:
    """Return samples as uint8 on the device. Raises `UserError` if they are not finite."""
    x = draw(model, sampling, index, y)
    if not bool(are_finite(x).all()):
        raise UserError(f"{NOT_FINITE}; choose the weights of an earlier step with --step")
    return as_pixels(x)


def as_pixels(x: Tensor) -> Tensor:
    """Return samples in [-1, 1] as uint8."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def are_finite(x: Tensor) -> Tensor:
    """Return for each sample (B, ...) whether all its values are finite."""
    return x.flatten(1).isfinite().all(1)


def jointly(model: nn.Module, shape: tuple[int, ...]) -> Network:
    """Return a network over vectors (B, C H W + E): the image, then its extra token."""

    # Any: the keyword arguments of `Backbone.forward`.
    def field(x: Tensor, times: Times, y: Condition | SharedText, **asked: Any) -> Prediction:
        image, extra = x.tensor_split([math.prod(shape)], dim=1)
        prediction = model(image.unflatten(1, shape), times, y, extra=extra, **asked)
        joint = torch.cat([prediction.velocity.flatten(1), prediction.extra], dim=1)
        return prediction._replace(velocity=joint)

    return field


def _normal(
    streams: Streams, name: str, *, index: np.ndarray, shape: tuple[int, ...], extra: int, features: int
) -> Tensor:
    """Return standard normal noise (B, *shape), with an extra token (B, C H W + E), or with more channels.

    The noise of the image is the same in all cases.
    """
    image = streams.normal(name, index, shape)
    if features:
        further = streams.normal(f"{name}/features", index, (features, *shape[1:]))
        return torch.cat([image, further], dim=1)
    if not extra:
        return image
    return torch.cat([image.flatten(1), streams.normal(f"{name}/extra", index, (extra,))], dim=1)


def sample_labels(spec: EvalSpec, streams: Streams, index: np.ndarray, classes: int) -> Tensor:
    """Return labels (B,), either balanced (i mod classes) or random (uniform, as in most papers).

    Balanced labels lower FID by about 0.1.
    """
    if spec.labels == "balanced":
        return torch.from_numpy(index % classes)
    return streams.integers("eval_label", index, classes)
