"""What a run costs: a phase meter for seconds and FLOPs alike, and FLOPs counted on the meta device.

Counted FLOPs are those of matrix products, convolutions and attention (2 per multiply-add, backward pass included), from
torch's own counter on the meta device, plus the elementwise work of optimizer and EMA per parameter. A frozen encoder's
forward pass and the teacher's are counted; training the encoder beforehand is not, as REPA's pretraining is not.
"""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.assembly.batch_split import check_shares
from harness.backbone.sit import SiT, SiTConfig
from harness.backbone.sizes import SIZES
from harness.backbone.tokens import Part
from harness.config import registry
from harness.config.spec import RunSpec
from harness.data.dataset import pictured, shapes_of
from harness.data.open import outlined
from harness.data.parts import weights_of
from harness.errors import UserError
from harness.flow.batch import Batch, View
from harness.flow.student import Student
from harness.runtime.random_streams import Streams

OPTIMIZER_FLOPS = 15
"""Per parameter: gradient norm and clip 3, first moment 3, second moment 4, update 5 (AdamW without weight decay)."""
EMA_FLOPS = 3
"""Per parameter: theta' + (1 - decay) (theta - theta')."""


class Meter:
    """Books something that grows (seconds, FLOPs) by phase; what a nested phase takes is not its parent's.

    `stamp` reads the quantity now, `between` the amount between two stamps. Amounts are added up in `settle`, so that
    stamps may be GPU events whose times are known later. `high_water` reads the most bytes since it was last read.
    """

    def __init__(
        self,
        stamp: Callable[[], Any],
        between: Callable[[Any, Any], float],
        high_water: Callable[[], int] | None = None,
    ) -> None:
        self._stamp, self._between, self._high_water = stamp, between, high_water
        self.peaks: dict[str, int] = {}
        """Most bytes on the device at once, by phase; empty where the device does not tell."""
        self._totals: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._spans: list[tuple[str, Any, Any]] = []
        self._since: Any = None
        self._instead: str | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._book()
        self._open.append(self._instead or name)
        try:
            yield
        finally:
            self._book()
            self._open.pop()

    @contextmanager
    def single(self, name: str) -> Iterator[None]:
        """Book everything inside as one phase: a process's first step compiles and allocates, and is booked as warm-up."""
        self._instead = name
        try:
            yield
        finally:
            self._instead = None

    def settle(self) -> dict[str, float]:
        """Totals by phase so far."""
        for name, start, end in self._spans:
            self._totals[name] += self._between(start, end)
        self._spans.clear()
        return dict(self._totals)

    def restore(self, totals: dict[str, float]) -> None:
        self._totals.update(totals)

    def _book(self) -> None:
        now = self._stamp()
        if self._open:
            self._spans.append((self._open[-1], self._since, now))
            if self._high_water is not None:
                self.peaks[self._open[-1]] = max(self.peaks.get(self._open[-1], 0), self._high_water())
        self._since = now


def clock(device: torch.device) -> Meter:
    """Seconds by phase. On CUDA the phases are measured on the GPU's own timeline, without synchronising."""
    if device.type != "cuda":
        return Meter(time.perf_counter, lambda start, end: end - start)

    def stamp() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        return start.elapsed_time(end) / 1000

    def high_water() -> int:  # the allocator's own count: nothing waits for the device
        most = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return most

    return Meter(stamp, between, high_water)


@dataclass(frozen=True)
class Cost:
    """FLOPs of training; evaluation is not part of it."""

    per_step: dict[str, int]
    """By phase: student (forward and backward), teacher, encoder, optimizer, ema."""
    steps: int
    parameters: int
    """Of the backbone."""
    aligned_until: int | None = None
    """The last step that costs `per_step`; later ones cost `per_step_after`."""
    per_step_after: dict[str, int] = field(default_factory=dict)

    @property
    def step(self) -> int:
        return sum(self.per_step.values())

    @property
    def total(self) -> int:
        return self.until(self.steps)

    def until(self, step: int) -> int:
        """What it costs to get behind a step."""
        if self.aligned_until is None:
            return self.step * step
        aligned = min(step, self.aligned_until)
        return self.step * aligned + sum(self.per_step_after.values()) * (step - aligned)


def count_spec(spec: RunSpec) -> Cost:
    """The counted cost of a whole run, from its spec alone: nothing is trained and no weights are read.

    Raises `UserError` for a batch that cannot be divided.
    """
    check_shares(spec)
    method, seen = planned(spec)
    return count(method, spec, encoders=seen)


def planned(spec: RunSpec) -> tuple[Any, list[Any]]:
    """The method of a spec and the architectures of its encoders, from the spec alone."""
    dataset = outlined(spec.data)
    backbone, seen = backbone_config(spec, dataset), seen_encoders(spec, dataset)
    dims, weights = [network.dim for network in seen], weights_of(dataset, spec.data)
    return build_method(spec, backbone, dims, weights), seen


def seen_encoders(spec: RunSpec, dataset: Any) -> list[Any]:
    """The architectures of a spec's encoders, on what the data set shows."""
    grid, shown = backbone_config(spec, dataset).grid, pictured(dataset)
    return [architecture(choice.name, shown, grid) for choice in spec.method.needs().encoders]


def architecture(encoder: str, dataset: Any, grid: tuple[int, int]) -> Any:
    """The `Architecture` of an encoder's name on images of a data set: no weights are read."""
    family, _, model = encoder.partition(":")
    return registry.load("encoder", family).architecture(model, dataset.shape, dataset.classes, grid)


def build_method(
    spec: RunSpec, backbone: SiTConfig, encoder_dims: Sequence[int], weights: tuple[float, ...] = ()
) -> Any:
    """The method of a spec, with the weights of a sample's parts in its loss; its `setting.backbone` has the extra token that it may need."""
    cls, needs = registry.load("method", spec.method.name), spec.method.needs()
    if needs.summary:
        backbone = replace(backbone, extra=encoder_dims[0])
    setting = {"time": spec.time, "encoder_dims": tuple(encoder_dims), "weights": weights}
    return cls.build(spec.method, backbone, **setting)


def count(method: Any, spec: RunSpec, *, encoders: Sequence[Any] = ()) -> Cost:
    """Count training steps of a method on the meta device; `encoders` are the architectures of its encoders."""
    parameters = sum(p.numel() for p in weightless(method.setting.backbone).parameters())
    first, until = _count_step(method, spec, 1, encoders), method.config.schedule.until
    if until is None or until >= spec.train.steps:
        return Cost(first, spec.train.steps, parameters)
    after = _count_step(method, spec, until + 1, encoders)
    return Cost(first if until else after, spec.train.steps, parameters, until, after)


def _count_step(method: Any, spec: RunSpec, step: int, encoders: Sequence[Any]) -> dict[str, int]:
    backbone = method.setting.backbone
    size, meta = spec.train.batch_size, torch.device("meta")
    counter = FlopCounterMode(display=False)
    meter = Meter(counter.get_total_flops, lambda start, end: end - start)
    model, ema = weightless(backbone), weightless(backbone)
    shadow = copy.deepcopy(method).to(meta)
    index, labels = np.arange(size), torch.zeros(size, dtype=torch.int64)
    batch = Batch(index, torch.zeros(size, *backbone.x_shape), labels, labels, step)
    encodes = method.config.encodes(step)
    if encodes:
        batch = replace(batch, views=tuple(empty_view(e, size, method, meta) for e in encoders))
    draw = method.draw(Streams(0), batch).to(meta)
    with counter, meter.phase("student"):
        shadow.loss(Student(model, ema, backbone, meter.phase), batch.to(meta), draw).total.backward()
    flops = {name: int(value) for name, value in meter.settle().items()}
    if encodes:
        flops["encoder"] = sum(encoder.flops for encoder in encoders) * size
    learned = sum(p.numel() for p in (*model.parameters(), *shadow.parameters()) if p.grad is not None)
    shadowed = sum(p.numel() for p in ema.parameters())
    return flops | {"optimizer": OPTIMIZER_FLOPS * learned, "ema": EMA_FLOPS * shadowed}


def empty_view(encoder: Any, size: int, method: Any, device: torch.device) -> View:
    """A view of the right shapes without numbers."""
    tokens, needs = method.setting.backbone.tokens, method.needs()
    empty = lambda *shape: torch.empty(size, *shape, device=device)  # noqa: E731
    summary = empty(encoder.dim) if needs.summary else None
    heads = (needs.attention, encoder.heads, tokens, tokens)
    return View(empty(tokens, encoder.dim), summary, empty(*heads) if needs.attention else None)


def weightless(backbone: SiTConfig) -> SiT:
    """The network on the meta device, where it takes no memory."""
    with torch.device("meta"):
        return SiT(backbone).to("meta")


def backbone_config(spec: RunSpec, dataset: Any) -> SiTConfig:
    """The backbone of a spec on a data set; raises `UserError` where the patch does not divide its samples."""
    asked, (shape, *beside) = spec.backbone, shapes_of(dataset)
    try:
        return SiTConfig(
            SIZES[asked.size],
            asked.patch,
            shape,
            dataset.classes,
            asked.learn_sigma,
            patch_time=asked.patch_time,
            beside=tuple(Part(sound, (asked.patch_sound,)) for sound in beside),
            positions=asked.positions,
        )
    except ValueError as error:
        raise UserError(f"backbone.{error}; choose another backbone.patch or data.resolution") from error
