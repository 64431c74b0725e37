"""FLOPs of training, counted on the meta device.

PyTorch's counter adds up matrix products, convolutions and attention: 2 per multiply-add, backward pass
included. The elementwise work of optimizer and EMA is added per parameter. The forward passes of frozen
encoders and of the teacher are counted. The earlier training of an encoder is not, as in the literature.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.assembly.batch_split import check_batch_split
from harness.assembly.build import empty_view, method_of_spec, weightless
from harness.assembly.frozen import freeze
from harness.config.spec import RunSpec
from harness.costs.meter import Meter
from harness.costs.optimizer import kept_tensors, optimizer_flops
from harness.encoders.base import Architecture, Encoder
from harness.flow.batch import Batch, Draw
from harness.flow.draws import draws_of
from harness.flow.gradients import separate_gradients
from harness.flow.method import TrainingMethod
from harness.flow.student import Student
from harness.runtime.random_streams import Streams

EMA_FLOPS = 3
"""FLOPs per parameter of theta' + (1 - decay) (theta - theta')."""


@dataclass(frozen=True)
class Cost:
    """FLOPs of training; evaluation is not part of it."""

    per_step: dict[str, int]
    """FLOPs of a step by phase: student (forward and backward), teacher, encoder, optimizer, ema."""
    steps: int
    parameters: int
    """Number of parameters of the backbone."""
    aligned_until: int | None = None
    """Last step that costs `per_step`; later ones cost `per_step_after`."""
    per_step_after: dict[str, int] = field(default_factory=dict)
    saved_numbers: int = 0
    """Numbers in a checkpoint without the EMA: parameters, and what the optimizer keeps for learned ones."""

    @property
    def step(self) -> int:
        """FLOPs of one step with alignment."""
        return sum(self.per_step.values())

    @property
    def total(self) -> int:
        """FLOPs of all steps."""
        return self.until(self.steps)

    def until(self, step: int) -> int:
        """Return the cumulative FLOPs up to and including a step."""
        if self.aligned_until is None:
            return self.step * step
        aligned = min(step, self.aligned_until)
        return self.step * aligned + sum(self.per_step_after.values()) * (step - aligned)


def count_spec(spec: RunSpec) -> Cost:
    """Count the cost of a run from its spec alone, without training and without reading weights.

    Raises `UserError` if the batch cannot be divided into micro-batches.
    """
    check_batch_split(spec)
    method, encoders = method_of_spec(spec)
    return count_once(method, spec, encoders=encoders)


def count(method: TrainingMethod, spec: RunSpec, *, encoders: Sequence[Encoder | Architecture] = ()) -> Cost:
    """Count the training steps of a method with the architectures of its encoders, on the meta device."""
    parameters = sum(p.numel() for p in weightless(method.setting.backbone).parameters())
    (first, saved), until = _count_step(method, spec, 1, encoders), method.config.until
    if until is None or until >= spec.train.steps:
        return Cost(first, spec.train.steps, parameters, saved_numbers=saved)
    after, saved_after = _count_step(method, spec, until + 1, encoders)
    saved = saved if until else saved_after
    return Cost(first if until else after, spec.train.steps, parameters, until, after, saved)


def count_once(
    method: TrainingMethod, spec: RunSpec, *, encoders: Sequence[Encoder | Architecture] = ()
) -> Cost:
    """Return what `count` does, for a method as it was built.

    A process counts specs once that differ in seed, rates or number of steps only.
    """
    until = method.config.until
    changes = until is not None and until < spec.train.steps
    sizes = [(encoder.dim, encoder.flops, encoder.heads) for encoder in encoders]
    chosen = (spec.train.batch_size, changes, sizes, spec.optimizer, spec.start.frozen)
    key = type(method), repr((method.config, method.setting, *chosen))
    if key not in _costs:
        _costs[key] = count(method, spec, encoders=encoders)
    return replace(_costs[key], steps=spec.train.steps)


_costs: dict[tuple[type[TrainingMethod], str], Cost] = {}


def count_reading(
    method: TrainingMethod, spec: RunSpec, step: int, encoders: Sequence[Encoder | Architecture] = ()
) -> int:
    """Return the FLOPs of reading the separate gradients at a step, encoders excluded: their features are
    those of the step.

    A process counts readings once that agree on the terms with a weight, and on whether `until` has passed.
    """
    config = method.config
    alike = (
        [term.weight(step) > 0 for term in config.terms.values()],
        config.until is None or step <= config.until,
    )
    key = type(method), repr((config, method.setting, spec.train.batch_size, alike, "reading"))
    if key not in _readings:
        shadow, batch, draw = _on_meta(method, spec, step, encoders)
        backbone = method.setting.backbone
        student = Student(weightless(backbone), weightless(backbone), backbone)
        with FlopCounterMode(display=False) as counter:
            separate_gradients(shadow, student, batch, draw)
        _readings[key] = counter.get_total_flops()
    return _readings[key]


def count_readings(spec: RunSpec) -> int:
    """Return the FLOPs of all readings of the separate gradients of a run, which are not training."""
    every, until = spec.train.log_gradients_every, spec.method.until
    if not every:
        return 0
    method, encoders = method_of_spec(spec)
    aligned = spec.train.steps if until is None else min(until, spec.train.steps)
    before, total = aligned // every, spec.train.steps // every
    first = count_reading(method, spec, 1, encoders) if before else 0
    rest = count_reading(method, spec, aligned + 1, encoders) if total > before else 0
    return before * first + (total - before) * rest


_readings: dict[tuple[type[TrainingMethod], str], int] = {}


def _on_meta(
    method: TrainingMethod, spec: RunSpec, step: int, encoders: Sequence[Encoder | Architecture]
) -> tuple[TrainingMethod, Batch, Draw]:
    """Return a copy of the method, a batch of a step and the draws for it, on the meta device."""
    backbone, size, meta = method.setting.backbone, spec.train.batch_size, torch.device("meta")
    index, labels = np.arange(size), torch.zeros(size, dtype=torch.int64)
    y = backbone.blank_condition(size)
    batch = Batch(index, torch.zeros(size, *backbone.x_shape), y, labels, step, given=y)
    if method.config.encodes(step):
        batch = replace(batch, views=tuple(empty_view(e, size, method, meta) for e in encoders))
    draw = draws_of(method, Streams(0), batch).to(meta)
    return copy.deepcopy(method).to(meta), batch.to(meta), draw


def _count_step(
    method: TrainingMethod, spec: RunSpec, step: int, encoders: Sequence[Encoder | Architecture]
) -> tuple[dict[str, int], int]:
    """Return the FLOPs of a step by phase, and the numbers in a checkpoint without the EMA."""
    backbone = method.setting.backbone
    counter = FlopCounterMode(display=False)
    meter = Meter(counter.get_total_flops, lambda start, end: end - start)
    model, ema = weightless(backbone), weightless(backbone)
    freeze(model, spec)
    shadow, batch, draw = _on_meta(method, spec, step, encoders)
    with counter, meter.phase("student"):
        shadow.loss(Student(model, ema, backbone, meter.phase), batch, draw).total.backward()
    flops = {name: int(value) for name, value in meter.settle().items()}
    if method.config.encodes(step):
        # Guidance at another scale than 1 compares two passes.
        passes = 1 if method.needs().guided in (None, 1) else 2
        flops["encoder"] = passes * sum(encoder.flops for encoder in encoders) * spec.train.batch_size
    every = {**dict(model.named_parameters(prefix="model")), **dict(shadow.named_parameters(prefix="method"))}
    learned = {name: p for name, p in every.items() if p.grad is not None}
    saved = sum(p.numel() * (1 + kept_tensors(spec.optimizer, name, p)) for name, p in learned.items())
    saved += sum(p.numel() for p in every.values() if not p.requires_grad)
    shadowed = sum(p.numel() for p in ema.parameters())
    flops |= {"optimizer": optimizer_flops(spec.optimizer, learned), "ema": EMA_FLOPS * shadowed}
    return flops, saved
