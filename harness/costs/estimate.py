"""The cost of a run before it starts: counted FLOPs, memory, and time at a measured or given speed.

    training hours = FLOPs of all steps / (devices x FLOP/s of one) / 3600

FLOPs are counted by flops.py. The FLOP/s of a device are those that training reaches on it, not those of its
data sheet. A measured speed is the median over steps, without the first one, on the record's clock. Time is
divided by the number of devices, so a given speed must include the cost of exchanging gradients. It must also
include the recomputation of activation checkpointing, which the count of FLOPs leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from harness.acting.network_actor import BATCH
from harness.assembly.batch_split import check_batch_split
from harness.assembly.build import backbone_config, sampling_rule, weightless
from harness.backbone.times import Times
from harness.config.evaluation_spec import EvalSpec
from harness.config.spec import RunSpec
from harness.costs.captions import CaptionCost, caption_cost
from harness.costs.disk import disk_bytes
from harness.costs.flops import Cost, count_readings, count_spec
from harness.costs.memory import Footprint, footprint
from harness.data.open import outlined
from harness.data.robot import CHUNK
from harness.environments.base import check_task, open_task
from harness.errors import UserError
from harness.evaluation.held_out_loss import TIMES
from harness.evaluation.metric_table import HELD_OUT_LOSS, is_sampled
from harness.flow.samplers import SAMPLERS, Interval
from harness.records.evaluations import SUCCESS

FINEST = 1000
"""The largest number of sampler steps whose times are listed; the share of those with guidance is that of
this number for more steps."""


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of a run."""

    cost: Cost
    evaluation_flops: int
    """FLOPs of the network in all evaluations of the run, without extractors and codec. They include those of
    `loss:held_out`, and those of `success@TASK` if every episode takes all its steps."""
    memory: Footprint
    disk_bytes: int
    """Checkpoints and kept weights of the finished run."""
    devices: int
    flops_per_second: float | None
    """Speed of one device in training; None if unknown."""
    evaluates_alike: bool = True
    """True if evaluation has training's precision, and hence its speed."""
    captions: CaptionCost | None = None
    """The text encoder's passes over all captions, once; None for a run on labels."""
    reading_flops: int = 0
    """FLOPs of all readings of separate gradients (`train.log_gradients_every`), which are not training."""

    def seconds(self, flops: int) -> float | None:
        """Return the time that all devices together take; None if their speed is unknown."""
        return flops / (self.devices * self.flops_per_second) if self.flops_per_second else None

    @property
    def evaluation_seconds(self) -> float | None:
        """Time of all evaluations; None if unknown, as it is in another precision than training's."""
        return self.seconds(self.evaluation_flops) if self.evaluates_alike else None

    # Any: JSON.
    def as_json(self) -> dict[str, Any]:
        """Return the object that `flowrace cost --json` prints."""
        cost = self.cost
        return {
            "parameters": cost.parameters,
            "steps": cost.steps,
            "flops": {
                "step": cost.step,
                "step_by_phase": cost.per_step,
                "training": cost.total,
                "evaluation": self.evaluation_flops,
                **({"gradients": self.reading_flops} if self.reading_flops else {}),
            },
            **({"captions": self.captions._asdict()} if self.captions else {}),
            "memory_bytes_per_device": self.memory.as_json(),
            "disk_bytes": self.disk_bytes,
            "devices": self.devices,
            "flops_per_second_per_device": self.flops_per_second,
            "seconds": {
                "step": self.seconds(cost.step),
                "training": self.seconds(cost.total),
                "evaluation": self.evaluation_seconds,
            },
        }


def estimate(spec: RunSpec, devices: int = 1, flops_per_second: float | None = None) -> Estimate:
    """Return the estimate of a run; raises `UserError` if its batch cannot be split over the devices."""
    check_batch_split(spec, devices)
    memory, alike = footprint(spec, devices), spec.train.precision == spec.eval.precision
    cost = count_spec(spec)
    disk = disk_bytes(spec, cost)
    captions = caption_cost(spec)
    about = (memory, disk, devices, flops_per_second, alike, captions, count_readings(spec))
    return Estimate(cost, evaluation_flops(spec), *about)


def evaluation_flops(spec: RunSpec) -> int:
    """Return the FLOPs of the network in all evaluations of a run, that of the last step included."""
    evaluations = -(-spec.train.steps // spec.eval.every)
    sampled = [name for name in spec.eval.metrics if is_sampled(name)]
    each = spec.eval.samples if sampled else min(spec.eval.samples, spec.eval.grid)
    own, samples = spec.eval, each * spec.eval.replicates
    drawn = samples * sum(map(passes, own.by_guidance))
    guided = samples * sum(map(guided_passes, own.by_guidance))
    plain = _forward_flops(spec)
    added = _forward_flops(spec, own.method_guidance) - plain if guided else 0
    return evaluations * ((drawn + _loss_passes(spec) + _success_passes(spec)) * plain + guided * added)


def _loss_passes(spec: RunSpec) -> int:
    """Return the network passes of `loss:held_out` in one evaluation: one for each sample and time.

    The number of held-out samples is an expectation, and at most `eval.samples`.
    """
    if HELD_OUT_LOSS not in spec.eval.metrics:
        return 0
    dataset = outlined(spec.data)
    # An outline of data that are not here has no length.
    known = len(dataset) if hasattr(dataset, "__len__") else None
    held_out = spec.eval.samples if known is None else round(spec.data.held_out * known)
    return len(TIMES) * min(spec.eval.samples, held_out)


def _success_passes(spec: RunSpec) -> int:
    """Return the network passes of `success@TASK` in one evaluation if no episode succeeds.

    The horizon of a task that is not installed is unknown, and it counts nothing.
    """
    found, own = 0, spec.eval
    for name in own.metrics:
        if not name.startswith(SUCCESS):
            continue
        check_task(name.removeprefix(SUCCESS))
        try:
            horizon = open_task(name.removeprefix(SUCCESS)).task.horizon
        except UserError:
            continue
        plans, batches = -(-horizon // (spec.data.chunk or CHUNK)), -(-own.samples // BATCH)
        found += plans * batches * BATCH * passes(own.model_copy(update={"guidance": 1.0}))
    return found


def passes(spec: EvalSpec) -> int:
    """Return the network passes of one sample under the first scale of guidance.

    Heun takes two in every step except the last, and guidance two while it is on.
    """
    return _passes(spec, 0.0, 1.0)


def guided_passes(spec: EvalSpec) -> int:
    """Return the network passes of one sample in the interval of the method's guidance."""
    if spec.method_guidance == 1:
        return 0
    return _passes(spec, spec.method_guidance_low, spec.method_guidance_high)


def _passes(spec: EvalSpec, low: float, high: float) -> int:
    """Return the network passes of one sample at times from `low` to `high`."""
    steps = min(spec.sampler_steps, FINEST)
    guidance = Interval(spec.scale, spec.guidance_low, spec.guidance_high)
    inside = [t for t in sampler_times(spec.sampler, steps, spec.sampler_shift) if low <= t <= high]
    counted = sum(1 if guidance.at(t) == 1 else 2 for t in inside)
    if steps == spec.sampler_steps:
        return counted
    taken, known = (2 * n - 1 if spec.sampler == "heun" else n for n in (spec.sampler_steps, steps))
    return round(counted * taken / known)


@cache
def sampler_times(sampler: str, steps: int, shift: float = 1.0) -> tuple[float, ...]:
    """Return the time of each network pass of a sampler, in order."""
    times: list[float] = []

    def still(x: Tensor, t: float) -> Tensor:
        times.append(t)
        return torch.zeros_like(x)

    none = lambda _, x: torch.zeros_like(x)  # noqa: E731
    SAMPLERS[sampler](still, torch.zeros(1), steps, noise=none, shift=shift)
    return tuple(times)


@torch.no_grad()
def _forward_flops(spec: RunSpec, scale: float = 1.0) -> int:
    """Return the FLOPs of the velocity of one sample, at a scale of the method's guidance."""
    dataset = outlined(spec.data)
    model, rule = weightless(backbone_config(spec, dataset)), sampling_rule(spec, dataset)
    with torch.device("meta"):
        x, y = torch.empty(1, *model.config.input_shape), model.config.blank_condition(1)
        times = Times.per_sample(torch.zeros(1))
        extra = torch.empty(1, model.config.extra) if model.config.extra else None
    asked = {"extra": extra} if extra is not None else {}
    with FlopCounterMode(display=False) as counter:
        rule(partial(model, **asked), x, times, y, scale=scale, null=y)
    return counter.get_total_flops()
