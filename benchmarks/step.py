"""One Self-Flow training step: ours against the released arithmetic, interleaved in one process.

    python -m benchmarks.step [--size S] [--tokens 256] [--batch 8] [--rounds 5]

Both sides share weights, draws, autograd, AdamW and precision; a round times each side once, and the ratio is taken round by
round. Writes benchmarks/results/step.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.released import ema_step, forward, tau_of
from harness.backbone.initial import initialize
from harness.backbone.sit import SiT, SiTConfig
from harness.backbone.sizes import SIZES
from harness.backbone.student import Student
from harness.backbone.times import Times
from harness.batch import Batch, Draw
from harness.draws import Streams
from harness.environment import device_name, package_version, prepare
from harness.path import interpolate
from harness.run import update_ema
from methods.align import cosine
from methods.flow import Flow
from methods.method import flow_loss
from methods.self_flow import SelfFlow

DECAY = 0.9999


class Side:
    """Networks, optimizer and a way to lose; sides start from the same weights."""

    def __init__(self, config: SiTConfig, size: str, method: type, loss: Callable | None = None) -> None:
        from harness.spec import BackboneSpec

        self.model = SiT(config)
        initialize(self.model, Streams(0))
        with (
            torch.no_grad()
        ):  # the official initialisation says nothing yet: losses would be equal whatever is computed
            for name, parameter in self.model.named_parameters():
                parameter.add_(0.02 * Streams(0).normal(f"signal/{name}", [0], parameter.shape)[0])
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        self.method = method.build(method.Config().resolved(BackboneSpec(size=size)), config)
        initialize(self.method, Streams(0), "method.")
        self.student = Student(self.model, self.ema, config)
        self.optimizer = torch.optim.AdamW(
            [*self.model.parameters(), *self.method.parameters()], 1e-4, fused=loss is None
        )
        self.loss = loss or (lambda side, batch, draw: side.method.loss(side.student, batch, draw).total)
        self.update = update_ema if loss is None else ema_step

    def step(self, batch: Batch, draw: Draw) -> float:
        total = self.loss(self, batch, draw)
        total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.update(self.ema, self.model, DECAY)
        return total.item()


def released_loss(side: Side, batch: Batch, draw: Draw) -> torch.Tensor:
    """Self-Flow Eq. 2-7 on the released arithmetic."""
    config, settings = side.model.config, side.method.config
    x = interpolate(batch.x0, draw.noise, draw.times, config)
    velocity, hidden = forward(
        side.model, x, tau_of(draw.times, config.tokens), batch.y, settings.student_layer
    )
    clean = Times.per_sample(draw.extra["cleaner"])
    x_clean = interpolate(batch.x0, draw.noise, clean, config)
    with torch.no_grad():
        _, target = forward(side.ema, x_clean, tau_of(clean, config.tokens), batch.y, settings.teacher_layer)
    align = (1 - cosine(side.method.projector(hidden), target)).mean()
    return flow_loss(velocity, batch, draw) + settings.gamma * align


def flops(config: SiTConfig, size: str, method: type, loss: Callable | None, batch: Batch, draw: Draw) -> int:
    """Counted on the meta device, forward and backward."""
    side = Side(config, size, method, loss)
    meta = torch.device("meta")
    for module in (side.model, side.ema, side.method):
        module.to(meta)
    counter = FlopCounterMode(display=False)
    with counter:
        side.loss(side, batch.to(meta), draw.to(meta)).backward()
    return counter.get_total_flops()


def main() -> None:
    options = _options()
    prepare(0)
    side_pixels = 2 * math.isqrt(options.tokens)
    config = SiTConfig(SIZES[options.size], 2, (4, side_pixels, side_pixels), 1000)
    streams, index = Streams(0), np.arange(options.batch)
    y = torch.from_numpy(index)
    batch = Batch(index, streams.normal("x0", index, config.shape), y, y)
    kinds = {"released": (SelfFlow, released_loss), "self_flow": (SelfFlow, None), "flow": (Flow, None)}
    sides = {name: Side(config, options.size, *kind) for name, kind in kinds.items()}
    draws = {name: side.method.draw(streams, batch) for name, side in sides.items()}
    first = {name: side.step(batch, draws[name]) for name, side in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, side in sides.items():
            begun = time.perf_counter()
            side.step(batch, draws[name])
            seconds[name].append(time.perf_counter() - begun)
    counted = {name: flops(config, options.size, *kinds[name], batch, draws[name]) for name in sides}
    result = {
        "what": f"one training step, SiT-{options.size}/2, {options.tokens} tokens, batch {options.batch}, float32, eager",
        "device": device_name(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "torch": package_version("torch"),
        "rounds": options.rounds,
        "median_seconds": {name: round(statistics.median(values), 4) for name, values in seconds.items()},
        "flops": counted,
        "ratios": {
            "released / self_flow": _ratio(seconds["released"], seconds["self_flow"]),
            "self_flow / flow": _ratio(seconds["self_flow"], seconds["flow"]),
        },
        "flops_ratios": {
            "released / self_flow": round(counted["released"] / counted["self_flow"], 3),
            "self_flow / flow": round(counted["self_flow"] / counted["flow"], 3),
        },
        "first_loss_difference": abs(first["released"] - first["self_flow"]),
    }
    print(json.dumps(result, indent=1))
    (Path(__file__).parent / "results" / "step.json").write_text(json.dumps(result, indent=1) + "\n")


def _ratio(above: list[float], below: list[float]) -> dict[str, float]:
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return {
        "median": round(statistics.median(ratios), 3),
        "min": round(min(ratios), 3),
        "max": round(max(ratios), 3),
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="S", choices=list(SIZES))
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
