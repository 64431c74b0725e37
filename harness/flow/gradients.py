"""The gradients of the flow loss and of a method's other terms, separately, at the same weights and draws.

    g_flow = d w L_gen / d theta           theta: the backbone's parameters, without projectors
    g_aux  = d (L - w L_gen) / d theta     every weighted term except L_gen, whose weight w is usually 1
    share  = |g_aux| / (|g_flow| + |g_aux|)
    cosine = <g_flow, g_aux> / (|g_flow| |g_aux|)

A share of 0 is plain flow matching. A negative cosine means that the two losses oppose each other. Gradients
are those before clipping, and before AdamW rescales each coordinate by the history of the total.

B  samples    T  tokens    D  channels
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.backbone.condition import Condition
from harness.backbone.network import Prediction
from harness.backbone.times import Times
from harness.flow.batch import Batch, Draw
from harness.flow.method import Losses, TrainingMethod
from harness.flow.student import Student

FRACTIONS = (0.3, 0.7, 1.0)
"""Depths whose features are measured in every method, as fractions: Self-Flow's two layers, and the last."""


class SeparateGradients(NamedTuple):
    """The gradients of one micro-batch, in the order of the backbone's parameters."""

    flow: list[Tensor]
    """Gradient of the total if the method has no differentiable part named `flow`."""
    auxiliary: list[Tensor] | None
    """None if the total is the flow loss alone."""
    losses: dict[str, Tensor]
    """The total and the named parts."""
    features: dict[str, Tensor]
    """Scalars by place and kind, see `describe`."""


@dataclass(frozen=True)
class MeasuredStudent(Student):
    """A student that describes the features of its passes, and whose passes are booked on no phase."""

    features: dict[str, Tensor] = field(default_factory=dict)

    # Any: the arguments of a pass, which are those of a student.
    def __call__(self, *args: Any, taps: Collection[int] = (), **asked: Any) -> Prediction:
        depth = self.config.size.depth
        usual = {max(1, round(fraction * depth)) for fraction in FRACTIONS}
        prediction = super().__call__(*args, taps=sorted({*taps, *usual}), **asked)
        for layer, tokens in sorted(prediction.hidden.items()):
            self.features.update(describe(f"student {layer}", tokens))
        return prediction

    def teach(
        self, x: Tensor, times: Times, y: Condition, *, layer: int, groups: Tensor | None = None
    ) -> Tensor:
        target = super().teach(x, times, y, layer=layer, groups=groups)
        self.features.update(describe(f"teacher {layer}", target))
        return target


@torch.no_grad()
def describe(place: str, tokens: Tensor) -> dict[str, Tensor]:
    """Return two float32 scalars of features (B, T, D), by `norm/PLACE` and `sameness/PLACE`.

    norm        mean over tokens of |h| / sqrt(D), which is 1 after a layer norm
    sameness    mean over samples of the cosine of two tokens of a sample, a token with itself included;
                1 if all tokens of a sample have one direction, which is how a representation collapses
    """
    tokens = tokens.detach().float()
    directions = F.normalize(tokens, dim=-1).mean(dim=1)
    return {
        f"norm/{place}": tokens.norm(dim=-1).mean() / tokens.shape[-1] ** 0.5,
        f"sameness/{place}": directions.square().sum(dim=-1).mean(),
    }


def separate_gradients(
    method: TrainingMethod,
    student: Student,
    batch: Batch,
    draw: Draw,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> SeparateGradients:
    """Return both gradients of a micro-batch, each from a separate forward and backward pass.

    Two passes, instead of one whose graph is kept, also work with compiled blocks and with activation
    checkpointing. No `.grad`, buffer or generator changes.
    """
    weights = [weight for weight in student.model.parameters() if weight.requires_grad]
    measured = MeasuredStudent(student.model, student.ema, student.config)
    with unchanged(method, batch.x0.device):
        with autocast():
            losses = method.loss(measured, batch, draw)
        named = {"loss": losses.total.detach()} | {k: v.detach() for k, v in losses.parts.items()}
        for name, view in zip(method.needs().encoders, batch.views, strict=False):
            measured.features.update(describe(f"encoder {name.name}", view.tokens))
        alone, weight = _is_alone(losses), method.config.flow_weight(batch.step)
        flow = gradient(losses.total if alone else weight * losses.parts["flow"], weights)
        if alone:
            return SeparateGradients(flow, None, named, measured.features)
        del losses
        with autocast():
            losses = method.loss(MeasuredStudent(student.model, student.ema, student.config), batch, draw)
        # The flow loss enters once with + and once with -, so that its gradient is exactly zero.
        auxiliary = gradient(losses.total - weight * losses.parts["flow"], weights)
    return SeparateGradients(flow, auxiliary, named, measured.features)


def gradient(loss: Tensor, weights: list[nn.Parameter]) -> list[Tensor]:
    """Return the gradient of a scalar with respect to each weight, zero for a weight that it does not use."""
    return list(torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True))


@contextmanager
def unchanged(method: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore the buffers of a method and the states of torch's generators, which its loss may change."""
    kept = [(buffer, buffer.detach().clone()) for buffer in method.buffers()]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
    with torch.no_grad():
        for buffer, before in kept:
            buffer.copy_(before)


def _is_alone(losses: Losses) -> bool:
    """Return whether the total cannot be divided, or is the flow loss."""
    flow = losses.parts.get("flow")
    return flow is None or not flow.requires_grad or flow is losses.total
