"""Evaluation: a network -> samples from fixed latents and labels -> features -> numbers. The same for every method and step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from harness.config.spec import EvalSpec
from harness.data.dataset import Dataset, pictured, shapes_of, x_shape
from harness.encoders.base import Encoder
from harness.evaluation.extractors import check_enough, check_outputs, open_extractor
from harness.evaluation.features import Gathered, Pending, fetched, parts_of, take_in
from harness.evaluation.inputs import check_seen, seen
from harness.evaluation.metric_names import TRUTHS, Yardstick, check_impartial, favoured, reads_of, yardstick
from harness.evaluation.noise_floor import FLOORED, chosen, floor, see
from harness.evaluation.protocol import digest, protocol
from harness.evaluation.reference_free import ready
from harness.evaluation.sample_grid import picture, png
from harness.files.files import write_atomic
from harness.flow.sampling import draw_pixels, sample_labels
from harness.latents.codec import decoder_of
from harness.runtime.distributed import World
from harness.runtime.random_streams import Streams
from harness.runtime.rounds import Round, gather_round, main_first, rounds
from metrics import MetricError, Value
from metrics.intervals import of_replicates
from metrics.suite import Metric, Side, metrics_of


class Number(NamedTuple):
    """A metric as the record has it: the mean over replicates with Student's t interval, or one value without any."""

    mean: float
    low: float | None
    high: float | None
    n: int
    """Samples in each replicate."""
    replicates: tuple[float, ...]

    def row(self) -> dict[str, Any]:
        """As JSON; a single evaluation lists no replicates."""
        row = self._asdict()
        replicates = row.pop("replicates")
        return row | ({"replicates": list(replicates)} if len(replicates) > 1 else {})


@dataclass(frozen=True)
class Result:
    metrics: dict[str, Number]
    protocol: str
    grid: np.ndarray
    """uint8 (H, W) or (H, W, 3): the first samples, always from the same latents."""
    errors: dict[str, str] = field(default_factory=dict)
    """Metrics that could not be computed, and why."""

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """The metrics as the record has them."""
        return {name: number.row() for name, number in self.metrics.items()}

    def save_grid(self, path: Path) -> None:
        write_atomic(path, png(self.grid))


class Once(NamedTuple):
    """One replicate: values and failures by metric, and the first samples."""

    values: dict[str, float]
    errors: dict[str, str]
    first: np.ndarray


class Drawn(NamedTuple):
    """One replicate's samples, on the main process: as each network sees them, and those whose pixels are wanted."""

    sides: dict[str, Gathered]
    broken: dict[str, str]
    """Networks whose features are not usable, and why."""
    pixels: list[Tensor]
    labels: list[Tensor]


class Evaluator:
    """Prepared once a run: networks, the training split as each of them sees it, floors, latents and labels.

    Several processes share the passes of the networks, batch by batch (rounds.py): each of them makes an evaluator and calls
    it. What is measured is measured on the main one, from the rows of all in the order of one process: the numbers have the
    same bits for any number of processes.

    Raises `UserError` for a metric that is unknown, not to be had, or needs more samples than there are.
    """

    def __init__(
        self,
        spec: EvalSpec,
        dataset: Dataset,
        train: np.ndarray,
        device: torch.device,
        held_out: np.ndarray | None = None,
        world: World | None = None,
    ) -> None:
        self.spec, self.device = spec, device
        self.world = world or World(0, 1, device)
        self.shape, self.classes = x_shape(dataset), dataset.classes
        self.decode, codec = decoder_of(dataset, device)
        dataset = pictured(dataset)
        self.shapes = shapes_of(dataset)
        self.sticks = [yardstick(name) for name in spec.metrics if name not in TRUTHS]
        for name in spec.metrics:
            check_enough(name, spec.samples, len(train))
        self.reads = {s.extractor: reads_of(s.name, s.extractor) for s in self.sticks}
        for stick in self.sticks:
            check_seen(stick.name, stick.extractor, self.reads[stick.extractor], dataset.modality)
        names = dict.fromkeys(stick.extractor for stick in self.sticks)
        with main_first(self.world):
            self.extractors = {
                name: open_extractor(name, spec.weights, dataset, train, device) for name in names
            }
            self.truths = [ready(name, dataset, train, device) for name in spec.metrics if name in TRUTHS]
        for stick in self.sticks:
            check_outputs(stick, self.extractors[stick.extractor])
        self.real, self.floor = self._real(dataset, train, held_out)
        if self.world.main and held_out is not None and len(held_out):
            floors = {truth.name: truth.floor(dataset, held_out[: spec.samples]) for truth in self.truths}
            self.floor |= {name: found for name, found in floors.items() if found}
        self.about = protocol(spec, dataset, train, self.extractors, self.truths) | codec
        self.protocol = digest(self.about)

    def __call__(self, model: nn.Module) -> Result | None:
        """Measure a network: every metric, on every replicate. A metric that fails is named in `errors`. None but on the main
        process."""
        each = (self._once(model, replicate) for replicate in range(self.spec.replicates))
        found = [once for once in each if once is not None]
        return self._result(found) if found else None

    def _result(self, found: list[Once]) -> Result:
        errors: dict[str, str] = {}
        for once in found:
            errors = once.errors | errors
        numbers = {
            name: _number([once.values[name] for once in found], self.spec.samples)
            for name in self.spec.metrics
            if name not in errors
        }
        return Result(numbers, self.protocol, picture(found[0].first, self.shapes), errors)

    def described(self, encoders: Iterable[Encoder]) -> dict[str, Any]:
        """For the record: the protocol, its hash, the floors, and the metrics whose network an encoder of this run is.

        Raises `UserError` where that is every metric.
        """
        known = list(encoders)
        weights = {encoder.sha256 for encoder in known}
        by_content = {s.name for s in self.sticks if self.extractors[s.extractor].sha256 in weights}
        by_name = favoured(self.spec.metrics, [encoder.name for encoder in known])
        aligned = [name for name in self.spec.metrics if name in by_content or name in by_name]
        check_impartial(self.spec.metrics, aligned, "spec")
        return {"hash": self.protocol, "protocol": self.about, "floor": self.floor, "aligned": aligned}

    def _once(self, model: nn.Module, replicate: int) -> Once | None:
        drawn = self._drawn(model, replicate)
        if not self.world.main:
            return None
        values, errors = self._measured(drawn.sides, drawn.broken)
        pixels, labels = torch.cat(drawn.pixels), torch.cat(drawn.labels)
        for truth in self.truths:
            try:
                values[truth.name] = truth(pixels, self.shapes, labels)
            except MetricError as error:
                errors[truth.name] = str(error)
        return Once(values, errors, pixels[: self.spec.grid].numpy())

    def _drawn(self, model: nn.Module, replicate: int) -> Drawn:
        """Replicate r has the samples of numbers r N .. (r + 1) N - 1: latents and labels of its own. While one round is
        generated the features of the one before are on their way."""
        spec, world = self.spec, self.world
        sides = {name: Gathered(parts_of(self._values(name)).fake) for name in self.extractors}
        drawn = Drawn(sides, broken={}, pixels=[], labels=[])
        keeps = spec.samples if self.truths else spec.grid
        waiting: dict[str, Pending] = {}
        numbers = range(replicate * spec.samples, (replicate + 1) * spec.samples)
        for turn in rounds(numbers, spec.batch_size, world):
            pixels = self._pixels(model, turn.local)
            if turn.combined.start - numbers.start < keeps:
                shown = gather_round(pixels, turn, world)
                if shown is not None:
                    drawn.pixels.append(shown.cpu())
                    drawn.labels.append(self._labels(turn.combined))
            now = self._looked_at(pixels, sides, turn)
            take_in(sides, waiting, self._labels, drawn.broken)
            waiting = now
        take_in(sides, waiting, self._labels, drawn.broken)
        return drawn

    def _looked_at(self, pixels: Tensor, sides: Mapping[str, Gathered], turn: Round) -> dict[str, Pending]:
        shown = {name: seen(pixels, self.shapes, self.reads[name]) for name in self.extractors}
        return {
            name: fetched(extract, shown[name], sides[name].outputs, turn, self.world)
            for name, extract in self.extractors.items()
        }

    def _labels(self, numbers: range) -> Tensor:
        return sample_labels(self.spec, Streams(self.spec.seed), np.array(numbers), self.classes)

    def _pixels(self, model: nn.Module, numbers: range) -> Tensor:
        index, labels = np.array(numbers), self._labels(numbers)
        return draw_pixels(
            model, self.spec, self.shape, self.classes, self.device, index, labels, self.decode
        )

    def _measured(
        self, sides: Mapping[str, Gathered], broken: Mapping[str, str]
    ) -> tuple[dict[str, float], dict[str, str]]:
        values, errors = {}, {}
        for name, gathered in sides.items():
            fake, real = gathered.side(), self.real[name]
            for metric in metrics_of(self._values(name)):
                numbers, error = ({}, broken[name]) if name in broken else _compute(metric, real, fake)
                for stick in self._sticks_of(name, metric):
                    if error:
                        errors[stick.name] = error
                    else:
                        values[stick.name] = numbers[stick.value]
        return values, errors

    def _values(self, extractor: str) -> list[str]:
        return [stick.value for stick in self.sticks if stick.extractor == extractor]

    def _sticks_of(self, extractor: str, metric: Metric) -> list[Yardstick]:
        return [s for s in self.sticks if s.extractor == extractor and s.value in metric.values]

    def _real(
        self, dataset: Dataset, train: np.ndarray, held_out: np.ndarray | None
    ) -> tuple[dict[str, Side], dict[str, dict[str, Any]]]:
        """The training split as each network sees it, and the floors of the metrics that have one."""
        sides, floors = {}, {}
        half = chosen(len(train), self.spec.samples)
        for name, extract in self.extractors.items():
            values = self._values(name)
            streamed = {FLOORED[value] for value in values if value in FLOORED}
            whole, one, other = Gathered(parts_of(values).real), Gathered(streamed), Gathered(streamed)
            unseen = Gathered(streamed)
            if parts_of(values).real:
                halves = [(whole, None), (one, half), (other, ~half)]
                see(extract, dataset, train, halves, self.reads[name], self.world)
            if streamed and held_out is not None:
                first = held_out[: self.spec.samples]
                see(extract, dataset, first, [(unseen, None)], self.reads[name], self.world)
            sides[name] = whole.side()
            for stick in self.sticks:
                if stick.extractor == name and stick.value in FLOORED:
                    part = FLOORED[stick.value]
                    floors[stick.name] = floor(*(g.moments[part] for g in (whole, one, other, unseen)))
        return sides, floors


def _number(values: list[float], n: int) -> Number:
    """Of one replicate the interval is its own, over samples, where it has one."""
    own = values[0] if len(values) == 1 and isinstance(values[0], Value) else None
    found = own if own is not None else of_replicates(values, n)
    return Number(found.mean, found.low, found.high, n, tuple(values))


def _compute(metric: Metric, real: Side, fake: Side) -> tuple[dict[str, float], str]:
    """The values of a metric by name, or why there are none."""
    try:
        numbers = [float(value) for value in metric.compute(real, fake)]
    except (MetricError, np.linalg.LinAlgError) as error:
        return {}, str(error)
    if not all(map(math.isfinite, numbers)):
        return {}, f"{metric.values[0]} is not finite"
    return dict(zip(metric.values, numbers, strict=True)), ""
