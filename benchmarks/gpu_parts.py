"""The measurements of `benchmarks.gpu` that take time: steps, sampling, evaluation and memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.sampling import speeds
from benchmarks.sides import Kind, Race, Side, ceiling, problem, text_problem, timed
from harness.backbone.network import BackboneConfig
from harness.config.spec import EvalSpec
from harness.costs.meter import clock
from harness.evaluation.features import FeaturePass, FeatureSet, Masked
from harness.flow.batch import Batch
from harness.flow.sampling import Sampling, as_pixels, draw
from harness.runtime.random_streams import Streams

# Any: JSON.
Found = dict[str, Any]
Problem = tuple[BackboneConfig, Batch]


@dataclass(frozen=True)
class Scale:
    """The sizes of the measured problems; a batch is halved until it fits into the device."""

    large: str = "XL"
    middle: str = "B"
    text: str = "T2I"
    tokens: int = 256
    large_batch: int = 64
    batch: int = 128
    text_batch: int = 64
    memory_batch: int = 256
    matrix: int = 8192
    rounds: int = 10
    compiled: bool = True

    def kind(self, method: str, *, released: bool = False) -> Kind:
        return Kind(method, released, "bfloat16", self.compiled)


def ceiling_of_products(scale: Scale, device: torch.device, found: Found) -> None:
    """Measure the FLOP/s of a large matrix product in bfloat16."""
    side = scale.matrix
    found["flops_per_second"] = ceiling(side, side, side, torch.bfloat16, device, 10 * scale.rounds)


def middle(scale: Scale, device: torch.device, found: Found) -> None:
    """Measure the steps of vanilla, Self-Flow, SRA and REPA at the middle size."""
    compare(scale, device, found, ("flow", "self_flow", "sra", "repa"), scale.middle, scale.batch)


def large(scale: Scale, device: torch.device, found: Found) -> None:
    """Measure the steps of vanilla and Self-Flow at the largest size."""
    compare(scale, device, found, ("flow", "self_flow"), scale.large, scale.large_batch)


def text(scale: Scale, device: torch.device, found: Found) -> None:
    """Measure the steps of vanilla and Self-Flow with the network that is conditioned on texts."""
    compare(scale, device, found, ("flow", "self_flow"), scale.text, scale.text_batch, text_problem)


def compare(
    scale: Scale,
    device: torch.device,
    found: Found,
    methods: tuple[str, ...],
    size: str,
    batch: int,
    made: Callable[[str, int, int], Problem] = problem,
) -> None:
    """Race the compiled steps of methods in bfloat16, and their ratios to the first."""
    first, *others = (scale.kind(method) for method in methods)
    ratios = {f"{kind.method} / {first.method}": (kind, first) for kind in others}
    race_pairs(scale, device, found, (first, *others), ratios, size, batch, made)


def released(scale: Scale, device: torch.device, found: Found) -> None:
    """Compare ours with the released arithmetic at the middle size, both compiled and in bfloat16."""
    methods = ("flow", "self_flow")
    sides = {method: (scale.kind(method, released=True), scale.kind(method)) for method in methods}
    ratios = {f"released {method} / ours": pair for method, pair in sides.items()}
    kinds = tuple(kind for pair in sides.values() for kind in pair)
    race_pairs(scale, device, found, kinds, ratios, scale.middle, scale.batch // 2, problem)


def race_pairs(
    scale: Scale,
    device: torch.device,
    found: Found,
    kinds: tuple[Kind, ...],
    ratios: Mapping[str, tuple[Kind, Kind]],
    size: str,
    batch: int,
    made: Callable[[str, int, int], Problem],
) -> None:
    """Race contestants and record the results of each round."""
    while True:
        config, samples = made(size, scale.tokens, batch)
        race = Race(config, size, samples, device)
        try:
            # The first one is measured alone, in case that the time or the memory suffices for no other.
            for count, kind in enumerate(kinds, start=1):
                race.enter(kind)
                race.run(1)
                found.update(race.about())
                found["contestants"] = count
            for times in (*race.seconds.values(), *race.cpu_seconds.values()):
                times.clear()
            for _ in range(scale.rounds):
                race.run(1)
                found.update(race.about())
                found["ratios"] = {name: race.ratio(*pair) for name, pair in ratios.items()}
            return
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2
        # Outside of the handler, whose error holds the tensors of the failed step.
        del race
        torch.cuda.empty_cache()


def memory(scale: Scale, device: torch.device, found: Found) -> None:
    """Measure peak bytes by phase for Self-Flow at the largest size, with and without checkpointing."""
    config, batch = problem(scale.large, scale.tokens, scale.memory_batch)
    sides = found["sides"] = {}
    for name, checkpointed in {"activations computed again": True, "activations kept": False}.items():
        meter = clock(device)
        kind = replace(scale.kind("self_flow"), checkpointed=checkpointed)
        try:
            side = Side(kind, config, scale.large, device, meter.phase)
            on_device = batch.to(device)
            drawn = side.method.draw(Streams(0), on_device).to(device)
            side.step(on_device, drawn)
            seconds = timed(lambda: side.step(on_device, drawn), device)  # noqa: B023
            sides[name] = {"seconds": round(seconds, 4), "bytes": meter.peaks}
        except torch.OutOfMemoryError:
            sides[name] = {"bytes": "more than the device has"}
        # Release the memory before the next measurement.
        side = on_device = drawn = None
        torch.compiler.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def sampling(scale: Scale, device: torch.device, found: Found) -> None:
    """Compare the sampler with REPA's loop, in float32 and bfloat16, eager and compiled."""
    options = SimpleNamespace(
        size=scale.middle,
        tokens=scale.tokens,
        batch=scale.large_batch,
        steps=8,
        guidance=1.5,
        rounds=3,
        eager=not scale.compiled,
    )
    found |= speeds(options, device)


def evaluation(scale: Scale, device: torch.device, found: Found, batches: int = 6) -> None:
    """Compare sampling and features one after the other with an evaluation, in which they overlap.

    The features are 2048 wide, as Inception's, and their moments are added on the host in float64.
    """
    size = scale.large_batch
    config, batch = problem(scale.middle, scale.tokens, size)
    model, y = Side(scale.kind("flow"), config, scale.middle, device).ema, batch.y.to(device)
    spec = EvalSpec(sampler="euler", sampler_steps=4, guidance=1.5, batch_size=size, precision="bfloat16")
    network = Features(config.shape[0]).to(device)

    def drawn(number: int) -> Tensor:
        index = np.arange(number * size, (number + 1) * size)
        sampling = Sampling(spec, config.shape, config.classes, device)
        return as_pixels(draw(model, sampling, index, y))

    def sampled() -> list[Tensor]:
        return [drawn(number) for number in range(batches)]

    def passed(samples: list[Tensor], *, waits: bool) -> FeaturePass:
        features = FeaturePass(network, [Masked(FeatureSet(["features"]))])
        for number in range(batches):
            features.add(samples[number] if samples else drawn(number))
            if waits:
                features.finish()
        features.finish()
        return features

    # Compiles, and allocates page-locked memory.
    passed(sampled()[:1] * batches, waits=False)
    samples = sampled()
    seconds = {
        "sampling": timed(sampled, device),
        "features": timed(lambda: passed(samples, waits=True), device),
        "overlapped": timed(lambda: passed([], waits=False), device),
    }
    found["samples"] = batches * size
    found["seconds by part"] = {name: round(value, 4) for name, value in seconds.items()}
    together = seconds["sampling"] + seconds["features"]
    found["separate / overlapped"] = round(together / seconds["overlapped"], 3)


class Features(nn.Module):
    """A small network with the 2048 features of Inception."""

    def __init__(self, channels: int, width: int = 2048) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, 256, 4, stride=4)
        self.out = nn.Linear(256, width)

    @property
    def device(self) -> torch.device:
        return self.out.weight.device

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, width) of images uint8 (B, C, H, W)."""
        maps = self.patches(images.to(self.device).float() / 127.5 - 1)
        return self.out(maps.relu().mean(dim=(2, 3)) * math.sqrt(maps.shape[1]))
