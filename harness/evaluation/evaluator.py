"""Evaluation of a run: samples from fixed latents and conditions, their features, and metrics.

Latents, conditions, extractors and real samples are the same for every method and step.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import nn

from harness.backbone.network import Backbone
from harness.config.evaluation_spec import EvalSpec
from harness.data.dataset import Dataset, pictured, shapes_of, x_shape
from harness.encoders.base import Encoder
from harness.evaluation.checks import check_extractor, check_impartial, check_metrics, check_undecoded
from harness.evaluation.conditions import conditions_of
from harness.evaluation.extractors import open_extractor
from harness.evaluation.features import FeaturePass, FeatureSet, Masked
from harness.evaluation.generated_side import Generated, GeneratedSamples
from harness.evaluation.held_out_loss import HeldOutLoss
from harness.evaluation.kept_features import Note, ignore, samples_identity
from harness.evaluation.metric_names import favoured, input_kind
from harness.evaluation.metric_table import HELD_OUT_LOSS, is_sampled
from harness.evaluation.protocol import digest, protocol
from harness.evaluation.real_side import RealSamples
from harness.evaluation.reference import race_reference
from harness.evaluation.reference_free import prepared
from harness.evaluation.result import MetricResult, Result
from harness.evaluation.sample_grid import count_drawn, picture
from harness.evaluation.task_success import TaskSuccess
from harness.files.progress import announced
from harness.flow.samplers import Rule, plain
from harness.flow.sampling import NOT_FINITE
from harness.latents.codec import decoder_of
from harness.records.evaluations import SUCCESS
from harness.runtime.distributed import World
from harness.runtime.rounds import main_first
from harness.text.captions import RunCaptions
from metrics import MetricError, Value
from metrics.suite import Metric, Side, metric_of, metrics_of


class Replicate(NamedTuple):
    """One set of samples: values and errors by metric, and the first samples."""

    values: dict[str, Value]
    errors: dict[str, str]
    first: np.ndarray


class Evaluator:
    """The evaluation of one run: extractors, real features and noise floors, all prepared once.

    Every rank must make an evaluator and call it. The batches are split over ranks (runtime/rounds.py), and
    rank 0 computes the metrics from all rows in single-process order. So values have the same bits for any
    number of ranks. Raises `UserError` as `check_metrics` does.
    """

    def __init__(
        self,
        spec: EvalSpec,
        dataset: Dataset,
        train: np.ndarray,
        device: torch.device,
        held_out: np.ndarray | None = None,
        world: World | None = None,
        *,
        note: Note = ignore,
        check: Callable[[Mapping[str, str]], None] = lambda _: None,
        captions: RunCaptions | None = None,
        rule: Rule = plain,
        giving: bool = False,
    ) -> None:
        """Open the networks and prepare the real side.

        `captions` are those of the data set, for a run that is conditioned on them. `note` is called with
        what takes long. `check` is called with the sha256 of each network, and may raise, before real samples
        are read. `rule` is the method's velocity at sampling. `giving` is true for a network with given
        tokens, which are those of held-out samples.
        """
        self.spec, *self.further = spec.by_guidance
        spec = self.spec
        self.world = world or World(0, 1, device)
        shape = x_shape(dataset)
        giver = dataset if giving else None
        self.conditions = conditions_of(spec, dataset.classes, captions, held_out, train, giver)
        decode, codec, self.undecoded = decoder_of(dataset, device)
        check_undecoded(spec.metrics, self.undecoded, "spec")
        unseen = np.empty(0, dtype=np.int64) if held_out is None else held_out
        self.held_out_loss = None
        if HELD_OUT_LOSS in spec.metrics:
            self.held_out_loss = HeldOutLoss(spec, dataset, unseen, captions, self.world, rule)
        dataset = pictured(dataset)
        self.shapes = shapes_of(dataset)
        self._note = note

        # The metrics and their networks.
        self.reference = race_reference(spec.reference)
        metrics = check_metrics(
            spec,
            dataset,
            dataset.modality,
            samples=spec.samples,
            real=len(train),
            held_out=len(unseen),
            captioned=captions is not None,
        )
        self.metrics = [metric for metric in metrics if metric.compares_features]
        named = [name for name in spec.metrics if name.startswith(SUCCESS)]
        self.successes = [TaskSuccess(name, spec, dataset, device, rule) for name in named]
        self.kinds = {metric.extractor: input_kind(metric) for metric in self.metrics}
        self.generated = GeneratedSamples(
            spec, shape, self.shapes, self.kinds, self.conditions, decode, rule, device, self.world
        )
        shown = None if captions is None else captions.first_texts
        with main_first(self.world), announced(note, f"opening the networks of {', '.join(spec.metrics)}"):
            self.extractors = {
                name: open_extractor(name, spec.weights, dataset, train, device) for name in self.kinds
            }
            self.reference_free = [
                prepared(metric.name, dataset, train, device, weights=spec.weights, captions=shown)
                for metric in metrics
                if metric.reference_free
            ]
        for metric in self.metrics:
            check_extractor(metric, self.extractors[metric.extractor])
        if self.reference is not None:
            frames = dataset.shape[1] if dataset.modality in ("video", "joint") else None
            self.reference.check(self.metrics, self.extractors, frames)
        # A caption score has both towers in one file.
        scored = {
            metric.name.partition(":")[2]: metric.about["images"]
            for metric in self.reference_free
            if "images" in metric.about
        }
        self.weights = {name: extract.sha256 for name, extract in self.extractors.items()} | scored | codec
        check(self.weights)

        # The real side.
        self.real: dict[str, Side] = {}
        self.noise_floor: dict[str, dict[str, Any]] = {}
        first_held_out = unseen[: spec.samples]
        for name in self.extractors:
            self._prepare_real(name, dataset, train, first_held_out)
        if self.world.main and len(first_held_out):
            floors = {m.name: m.noise_floor(dataset, first_held_out) for m in self.reference_free}
            self.noise_floor |= {name: floor for name, floor in floors.items() if floor}

        self.about = (
            protocol(
                spec,
                dataset,
                train,
                self.extractors,
                self.reference_free,
                self.reference,
                self._about_unsampled(),
            )
            | codec
            | self.conditions.about()
        )
        self.protocol = digest(self.about)

    def __call__(self, model: nn.Module) -> Result | None:
        """Compute every metric on every replicate. Failing metrics are listed in `errors`.

        With several scales of guidance, use the first. Returns None on every rank except 0.
        """
        return self._measure(model, *self._unsampled(model))

    def each(self, model: nn.Module) -> Iterator[tuple[Evaluator, Result | None]]:
        """Measure under each scale of guidance, in order, and yield its evaluator with the result.

        Networks, real samples, noise and conditions are shared, and so are the validation loss and success,
        which have no guidance.
        """
        unsampled = self._unsampled(model)
        for evaluator in (self, *map(self.under, self.further)):
            yield evaluator, evaluator._measure(model, *unsampled)

    def under(self, spec: EvalSpec) -> Evaluator:
        """Return this evaluator under a spec that differs in its scale of guidance only."""
        other = copy.copy(self)
        other.spec, other.further = spec, []
        other.generated = replace(self.generated, spec=spec)
        other.about = self.about | {"guidance": spec.scale}
        other.protocol = digest(other.about)
        return other

    def _measure(
        self, model: nn.Module, unsampled: Mapping[str, MetricResult], errors: Mapping[str, str]
    ) -> Result | None:
        if self.undecoded:
            # No sample is drawn from latents that cannot be decoded.
            found = Result(dict(unsampled), self.protocol, None, dict(errors))
            return found if self.world.main else None
        replicates = [self._replicate(model, number) for number in range(self.spec.replicates)]
        measured = [replicate for replicate in replicates if replicate is not None]
        return self._result(measured, unsampled, errors) if measured else None

    # Any: JSON
    def described(self, encoders: Iterable[Encoder]) -> dict[str, Any]:
        """Return the protocol, its hash, the noise floors and the metrics computed by an encoder, as JSON.

        Raises `UserError` if an encoder computes every metric.
        """
        encoders = list(encoders)
        aligned = self.aligned_metrics(
            {encoder.name for encoder in encoders}, {encoder.sha256 for encoder in encoders}
        )
        check_impartial(self.spec.metrics, aligned, "spec")
        return {
            "hash": self.protocol,
            "protocol": self.about,
            "floor": self.noise_floor,
            "aligned": aligned,
            **({"samples_skipped": self.undecoded} if self.undecoded else {}),
            **({"reference": self.reference.about()} if self.reference else {}),
        }

    def aligned_metrics(self, encoders: Iterable[str], weights: Container[str | None]) -> list[str]:
        """Return the metrics that are computed by one of these encoders, by its name or by its weights."""
        by_content = {m.name for m in self.metrics if self.extractors[m.extractor].sha256 in weights}
        by_name = favoured(self.spec.metrics, encoders)
        return [name for name in self.spec.metrics if name in by_content or name in by_name]

    def _prepare_real(self, name: str, dataset: Dataset, train: np.ndarray, held_out: np.ndarray) -> None:
        """Get a network's outputs for the training split, or a reference, and its metrics' noise floors."""
        needed = self._needed(name)
        specs = [metric for metric in self.metrics if metric.extractor == name]
        what = ", ".join(metric.name for metric in specs)
        samples = RealSamples(self.extractors[name], self.kinds[name], dataset, self.world, what, self._note)
        if self.reference is None:
            real, halves = samples.training(train, needed, self.spec.samples)
            identity = samples_identity(dataset, train)
        else:
            real, halves, identity = self.reference.features(), {}, [self.reference.sha256]
        unseen = samples.held_out(held_out, needed, real, identity)
        self.real[name] = real.side()
        for metric in specs:
            part = metric_of(metric.value).real
            pairs = (
                {"train_halves": halves, "held_out": unseen} if metric_of(metric.value).noise_floor else {}
            )
            if pairs and self.world.main:
                self.noise_floor[metric.name] = {
                    kind: dict(floors[part]) for kind, floors in pairs.items() if part in floors
                }

    @property
    def sampled_metrics(self) -> list[str]:
        """The metrics of generated samples."""
        return [name for name in self.spec.metrics if is_sampled(name)]

    # Any: JSON.
    def _about_unsampled(self) -> dict[str, dict[str, Any]]:
        """Return what the validation loss and success depend on, by metric."""
        loss = {HELD_OUT_LOSS: self.held_out_loss.about()} if self.held_out_loss else {}
        return loss | {success.name: success.about() for success in self.successes}

    def _unsampled(self, model: nn.Module) -> tuple[dict[str, MetricResult], dict[str, str]]:
        """Return the validation loss and success by name, and why one of them cannot be computed."""
        found, errors = {}, {}
        if self.held_out_loss is not None:
            try:
                losses = self.held_out_loss(model)
                found |= {name: MetricResult.of_value(value) for name, value in losses.items()}
            except MetricError as error:
                errors[HELD_OUT_LOSS] = str(error)
        for success in self.successes:
            try:
                rates = success(cast(Backbone, model))
                found |= {name: MetricResult.of_value(*rate) for name, rate in rates.items()}
            except MetricError as error:
                errors[success.name] = str(error)
        return found, errors

    def _replicate(self, model: nn.Module, number: int) -> Replicate | None:
        generated = self._generate(model, number)
        if not self.world.main:
            return None
        if generated.broken:
            reason = f"{NOT_FINITE}: {generated.broken} of {self.spec.samples}"
            return Replicate(
                {},
                dict.fromkeys(self.sampled_metrics, reason),
                torch.cat(generated.pixels)[: self.spec.grid].numpy(),
            )
        values, errors = self._compare(generated.features)
        pixels, labels = torch.cat(generated.pixels), torch.cat(generated.labels)
        for metric in self.reference_free:
            compared = torch.cat(generated.places) if metric.captioned else labels
            try:
                values[metric.name] = metric(pixels, self.shapes, compared)
            except MetricError as error:
                errors[metric.name] = str(error)
        return Replicate(values, errors, pixels[: self.spec.grid].numpy())

    def _generate(self, model: nn.Module, replicate: int) -> Generated:
        """Draw samples r N to (r + 1) N - 1 of replicate r."""
        spec = self.spec
        # Without a metric of samples, only the grid is drawn.
        count = spec.samples if self.sampled_metrics else min(spec.samples, spec.grid)
        first = replicate * spec.samples
        passes = {name: self._generated_pass(name) for name in self.extractors}
        shown = spec.samples if self.reference_free else spec.grid
        return self.generated.generate(model, range(first, first + count), passes, shown)

    def _generated_pass(self, name: str) -> FeaturePass:
        parts = {metric.fake for metric in self._needed(name)}
        return FeaturePass(self.extractors[name], [Masked(FeatureSet.of_parts(parts))], self.world)

    def _compare(self, passes: dict[str, FeaturePass]) -> tuple[dict[str, Value], dict[str, str]]:
        """Compute the metrics of each network from its real and its generated side."""
        values, errors = {}, {}
        for name, features in passes.items():
            fake = features.sets[0].into.side()
            for metric in self._needed(name):
                computed, error = (
                    ({}, str(features.error)) if features.error else _compute(metric, self.real[name], fake)
                )
                for spec in self.metrics:
                    if spec.extractor == name and spec.value in metric.values:
                        if error:
                            errors[spec.name] = error
                        else:
                            values[spec.name] = computed[spec.value]
        return values, errors

    def _result(
        self,
        replicates: list[Replicate],
        unsampled: Mapping[str, MetricResult],
        unsampled_errors: Mapping[str, str],
    ) -> Result:
        errors = dict(unsampled_errors)
        for replicate in replicates:
            errors = replicate.errors | errors
        metrics = {
            name: MetricResult.of_replicates(
                [replicate.values[name] for replicate in replicates], self._n_of(name, replicates)
            )
            for name in self.sampled_metrics
            if name not in errors
        }
        # In the order of the spec, then the values by time, part and stage.
        metrics |= unsampled
        metrics = {name: metrics[name] for name in (*self.spec.metrics, *metrics) if name in metrics}
        first = replicates[0].first
        captions = self.conditions.texts(np.arange(count_drawn(len(first), self.shapes)))
        return Result(metrics, self.protocol, picture(first, self.shapes), errors, tuple(captions))

    def _n_of(self, name: str, replicates: list[Replicate]) -> int:
        """Return the number of samples that a metric counts: those whose caption states its attribute.

        It is the smallest one of the replicates, which may have different captions.
        """
        captioned = {metric.name for metric in self.reference_free if metric.captioned}
        counted = [replicate.values[name].n for replicate in replicates]
        return min(counted) if name in captioned else self.spec.samples

    def _needed(self, extractor: str) -> list[Metric]:
        return metrics_of(metric.value for metric in self.metrics if metric.extractor == extractor)


def _compute(metric: Metric, real: Side, fake: Side) -> tuple[dict[str, Value], str]:
    """Return the values of a metric by name, without intervals, and the error, empty if it succeeded."""
    try:
        # These metrics are recorded with an interval over replicates, never with one over samples.
        values = [Value(value.mean) for value in metric.compute(real, fake)]
    except (MetricError, np.linalg.LinAlgError) as error:
        return {}, str(error)
    if not all(math.isfinite(value.mean) for value in values):
        return {}, f"{metric.values[0]} is not finite"
    return dict(zip(metric.values, values, strict=True)), ""
