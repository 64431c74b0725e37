"""The base class of objectives: flow matching plus a weighted alignment term."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.backbone.network import Prediction
from harness.config.method_config import MethodConfig, Needs, Schedule
from harness.flow.batch import Batch, Draw
from harness.flow.method import Losses, Setting, TrainingMethod
from harness.flow.path import as_target, interpolate, part_times, times_of_parts, velocity_target
from harness.flow.student import Student
from harness.flow.weighting import Weights
from harness.runtime.random_streams import Streams
from methods.common.given_tokens import mean_of_generated
from methods.common.missing_parts import separated, weights_of_samples

__all__ = [
    "Losses",
    "Method",
    "MethodConfig",
    "Needs",
    "Schedule",
    "Setting",
    "flow_loss",
    "second_velocity_error",
    "velocity_error",
]


class Method(TrainingMethod):
    """The base of every objective: flow matching plus a weighted alignment term.

    A subclass sets `Config`, and overrides `draw` for other times and masks and `align` for a second term.
    """

    stacks_with: ClassVar[tuple[str, ...]] = ()
    """Methods with which this one can be stacked (methods/common/stack.py). They must need no other draw of
    times than this method, and have no loss of a form other than that of this class. Inside a route, only the
    tokens that stay have an output, so no method that needs the full grid or its attention stacks with one
    that routes."""

    def draw(self, streams: Streams, batch: Batch) -> Draw:
        """Return noise and one time per sample, from the streams that all methods share."""
        t = part_times(self.setting.time, self.setting.backbone, streams, "time", batch.index)
        noise = streams.normal("noise", batch.index, batch.x0.shape[1:])
        return self.draw_more(streams, batch, Draw(noise, times_of_parts(t, self.setting.backbone)))

    def draw_more(self, streams: Streams, batch: Batch, draw: Draw) -> Draw:
        """Return a draw with what this method adds to it, for example a route; by default, unchanged.

        In a stack, several methods add to one draw, but only one may override `draw` itself.
        """
        return draw

    def loss(self, student: Student, batch: Batch, draw: Draw) -> Losses:
        """Return flow_weight x L_gen + weight x L_align; while the weight is 0, L_align is not computed.

        The part named `flow` is L_gen without its weight.
        """
        weight = self.config.weight(batch.step)
        prediction = self.predict(student, batch, draw, self.needs() if weight else Needs())
        flow = flow_loss(prediction.velocity, batch, draw, self.setting)
        total = self.weighted_flow(flow, batch.step)
        if not weight:
            return Losses(total, {"flow": flow})
        align = self.align(student, batch, draw, prediction)
        return Losses(total + weight * align, {"flow": flow, "align": align})

    def weighted_flow(self, flow: Tensor, step: int) -> Tensor:
        """Return the flow loss times its weight at a step, and the loss itself for a weight of 1."""
        weight = self.config.flow_weight(step)
        return flow if weight == 1 else weight * flow

    def predict(self, student: Student, batch: Batch, draw: Draw, needs: Needs) -> Prediction:
        """Return the student's outputs on the noised samples, with the layers that are needed."""
        return student(
            interpolate(batch.x0, draw.noise, draw.times, self.setting.backbone),
            draw.times,
            batch.y,
            taps=needs.taps,
            groups=separated(draw.groups, batch, self.setting.backbone),
            heads=needs.heads,
            outputs=needs.outputs,
            route=draw.route,
        )

    def align(self, student: Student, batch: Batch, draw: Draw, prediction: Prediction) -> Tensor:
        """Return the second term, a scalar; called only while its weight is not zero."""
        raise NotImplementedError(f"{type(self).__name__} has a weight but no alignment term")


def flow_loss(velocity: Tensor, batch: Batch, draw: Draw, setting: Setting) -> Tensor:
    """Return L_gen = mean || v - (eps - x0) ||^2 over samples, channels and pixels (SiT Eq. 7; REPA loss.py).

    It is computed in float32. The target of x-prediction is smaller near time 0, as its velocity is
    (harness/backbone/prediction.py). For several parts it is their weighted sum (Self-Flow section 4.4), for
    each sample over the parts that it has (missing_parts.py). Given values are left out (given_tokens.py).
    `flow.weighting` gives it a weight at each time (harness/flow/weighting.py).
    """
    target = as_target(velocity_target(batch.x0, draw.noise), draw.times, setting.backbone)
    return velocity_error(velocity, target, batch, setting, setting.weights_at(draw.times))


def second_velocity_error(
    velocity: Tensor, target: Tensor, batch: Batch, draw: Draw, setting: Setting
) -> Tensor:
    """Return the mean square of v - target for a velocity or a target other than those of L_gen.

    It has the factor of `flow.weighting` at each time. u(t) of `log_variance` fits L_gen alone.
    """
    weights = setting.weights_at(draw.times)
    return velocity_error(velocity, target, batch, setting, None if weights is None else weights.fixed())


def velocity_error(
    velocity: Tensor, target: Tensor, batch: Batch, setting: Setting, weights: Weights | None = None
) -> Tensor:
    """Return the mean square of v - target in float32, with the weights of L_gen over parts.

    `weights` are those of times; None for none.
    """
    velocity = velocity.float()
    if weights is not None or setting.backbone.given_tokens is not None:
        errors = (velocity - target).square()
        return _mean_over_parts(errors if weights is None else weights.of(errors), batch, setting)
    if not setting.weights:
        return F.mse_loss(velocity, target)
    pairs = list(zip(*map(setting.backbone.split_parts, (velocity, target)), strict=True))
    if batch.present is None:
        means = [weight * F.mse_loss(a, b) for weight, (a, b) in zip(setting.weights, pairs, strict=True)]
    else:
        weights_PB = weights_of_samples(batch.present, setting.weights).unbind(dim=1)
        errors = [(a - b).square().flatten(1).mean(dim=1) for a, b in pairs]
        means = [(weights * error).mean() for weights, error in zip(weights_PB, errors, strict=True)]
    return sum(means[1:], start=means[0])


def _mean_over_parts(errors: Tensor, batch: Batch, setting: Setting) -> Tensor:
    """Return the mean of errors (B, *x_shape) with the weights of L_gen over parts."""
    if setting.backbone.given_tokens is not None:
        return mean_of_generated(errors, batch, setting.backbone, setting.weights)
    if not setting.weights:
        return errors.mean()
    means_BP = torch.stack([e.flatten(1).mean(dim=1) for e in setting.backbone.split_parts(errors)], dim=1)
    if batch.present is None:
        return (means_BP * means_BP.new_tensor(setting.weights)).sum(dim=1).mean()
    return (means_BP * weights_of_samples(batch.present, setting.weights)).sum(dim=1).mean()
