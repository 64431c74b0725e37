"""The contestants of the step benchmarks: a network, an optimizer and a loss, ours or the released loop's.

All start from the same weights and get the same samples and draws. The released loop uses AdamW at its
defaults and updates the EMA one parameter at a time; it is eager by default. Its arithmetic is in
released.py.
"""

from __future__ import annotations

import functools
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.released import ema_step, flow_loss_released, self_flow_loss_released
from harness.assembly.build import build_backbone
from harness.backbone.condition import Text, TextShape
from harness.backbone.initialize import initialize
from harness.backbone.kinds import network_of
from harness.backbone.mmdit import MMDiTConfig
from harness.backbone.network import Backbone, BackboneConfig
from harness.backbone.sit import SiTConfig
from harness.backbone.sizes import SIZES, size_named
from harness.config import registry
from harness.config.backbone_spec import BackboneSpec
from harness.config.spec import RuntimeSpec
from harness.flow.batch import Batch, Draw, View
from harness.flow.student import Student
from harness.runtime.environment import device_name, package_version
from harness.runtime.random_streams import Streams
from harness.train.state import update_ema

DECAY = 0.9999
ENCODER_DIM = 768
"""The feature dimension of DINOv2-B, REPA's encoder."""
RELEASED = {"flow": flow_loss_released, "self_flow": self_flow_loss_released}


@dataclass(frozen=True)
class Kind:
    """The properties that distinguish contestants."""

    method: str
    released: bool = False
    precision: str = "float32"
    compiled: bool = False
    checkpointed: bool = False

    def __str__(self) -> str:
        words = [self.method, "released" * self.released, "bf16" * (self.precision == "bfloat16")]
        return " ".join(w for w in (*words, "compiled" * self.compiled, "ckpt" * self.checkpointed) if w)


class Side:
    """One contestant on a device."""

    def __init__(
        self,
        kind: Kind,
        config: BackboneConfig,
        size: str,
        device: torch.device,
        phase: Callable = nullcontext,
    ) -> None:
        self.kind, self.device, self.phase = kind, device, phase
        runtime = RuntimeSpec(
            compile=kind.compiled and not kind.released, checkpoint_activations=kind.checkpointed
        )
        self.model = build_backbone(config, runtime, copy_of=_network(config))
        cls = registry.load("method", kind.method)
        method_config = cls.Config().resolved(BackboneSpec(size=size))
        dims = (ENCODER_DIM,) * len(method_config.needs().encoders)
        self.method = cls.build(method_config, config, encoder_dims=dims)
        initialize(self.method, Streams(0), "method.")
        self.ema = build_backbone(config, runtime, copy_of=self.model).requires_grad_(False)
        self.model, self.ema, self.method = (
            module.to(device) for module in (self.model, self.ema, self.method)
        )
        self.student = Student(self.model, self.ema, config, phase)
        self.learned = [*self.model.parameters(), *self.method.parameters()]
        self.optimizer = torch.optim.AdamW(self.learned, 1e-4, fused=None if kind.released else True)
        self.update: Callable = ema_step if kind.released else update_ema
        compiles = kind.compiled and kind.released
        self.forward = functools.cache(lambda f: torch.compile(f, dynamic=False) if compiles else f)

    def loss(self, batch: Batch, draw: Draw) -> Tensor:
        bfloat16 = self.kind.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16) if bfloat16 else nullcontext():
            if self.kind.released:
                return RELEASED[self.kind.method](self, batch, draw)
            return self.method.loss(self.student, batch, draw).total

    def step(self, batch: Batch, draw: Draw) -> Tensor:
        """Take a complete training step; the returned loss stays on the device."""
        with self.phase("student"):
            total = self.loss(batch, draw)
            total.backward()
        with self.phase("optimizer"):
            nn.utils.clip_grad_norm_(self.learned, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        with self.phase("ema"):
            self.update(self.ema, self.model, DECAY)
        return total.detach()


def problem(size: str, tokens: int, batch: int) -> tuple[SiTConfig, Batch]:
    """Return a SiT/2 for latents with this number of tokens, and a batch of noise for it."""
    pixels = 2 * math.isqrt(tokens)
    config = SiTConfig(SIZES[size], 2, (4, pixels, pixels), 1000)
    index, streams = np.arange(batch), Streams(0)
    y = torch.from_numpy(index % 1000)
    view = View(streams.normal("view", index, (config.tokens, ENCODER_DIM)))
    return config, Batch(index, streams.normal("x0", index, config.shape), y, y, views=(view,))


def text_problem(size: str, tokens: int, batch: int) -> tuple[MMDiTConfig, Batch]:
    """Return an MMDiT/2 for texts of CLIP-L's shape, and a batch of noise with different texts for it."""
    pixels, chosen = 2 * math.isqrt(tokens), size_named(size)
    assert chosen is not None
    config = MMDiTConfig(chosen, 2, (4, pixels, pixels), 1, text=TextShape(768, 77))
    index, streams = np.arange(batch), Streams(0)
    y = Text(streams.normal("text", index, (config.text.length, config.text.dim)))
    label = torch.zeros(batch, dtype=torch.int64)
    return config, Batch(index, streams.normal("x0", index, config.shape), y, label, given=y)


class Race:
    """Interleaved contestants: a round times each of them once, and ratios are taken within rounds."""

    def __init__(self, config: BackboneConfig, size: str, batch: Batch, device: torch.device) -> None:
        self.config, self.size, self.device = config, size, device
        self.batch = batch.to(device)
        self.sides: dict[str, Side] = {}
        self.draws: dict[str, Draw] = {}
        self.first: dict[str, float] = {}
        self.seconds: dict[str, list[float]] = {}
        self.cpu_seconds: dict[str, list[float]] = {}
        self.flops: dict[str, int] = {}

    def enter(self, *kinds: Kind) -> None:
        """Build contestants and let each take two steps: the first compiles, the second allocates."""
        for kind in kinds:
            name, side = str(kind), Side(kind, self.config, self.size, self.device)
            draw = side.method.draw(Streams(0), self.batch).to(self.device)
            self.sides[name], self.draws[name] = side, draw
            self.seconds[name], self.cpu_seconds[name] = [], []
            self.first[name] = float(side.step(self.batch, draw))
            side.step(self.batch, draw)
            self.flops[name] = self._counted(kind, draw)

    def _counted(self, kind: Kind, draw: Draw) -> int:
        """Count the FLOPs of forward and backward passes on the meta device, without recomputation by
        checkpointing."""
        for name, counted in self.flops.items():
            known = self.sides[name].kind
            if (known.method, known.released) == (kind.method, kind.released):
                return counted
        side = Side(Kind(kind.method, kind.released), self.config, self.size, torch.device("meta"))
        counter = FlopCounterMode(display=False)
        with counter:
            side.loss(self.batch.to(side.device), draw.to(side.device)).backward()
        return counter.get_total_flops()

    def run(self, rounds: int) -> None:
        for _ in range(rounds):
            for name, side in self.sides.items():
                used = time.process_time()
                step = functools.partial(side.step, self.batch, self.draws[name])
                self.seconds[name].append(timed(step, self.device))
                self.cpu_seconds[name].append(time.process_time() - used)

    def ratio(self, above: Kind, below: Kind) -> dict[str, float]:
        """Return the ratios of seconds (within rounds), of minimum CPU time, and of counted FLOPs.

        The minimum CPU time is least sensitive to other load on the machine.
        """
        first, second = str(above), str(below)
        rounds = zip(self.seconds[first], self.seconds[second], strict=True)
        used = min(self.cpu_seconds[first]) / min(self.cpu_seconds[second])
        flops = self.flops[first] / self.flops[second]
        return spread([a / b for a, b in rounds]) | {"cpu": round(used, 3), "flops": round(flops, 3)}

    def about(self) -> dict[str, Any]:
        return {
            "tokens": self.config.tokens,
            "batch": len(self.batch.x0),
            **machine(self.device),
            "median_seconds": {name: round(statistics.median(s), 4) for name, s in self.seconds.items()},
            "flops": self.flops,
            "first_loss": self.first,
        }


def machine(device: torch.device) -> dict[str, Any]:
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": package_version("torch"),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds until the device has finished the work."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    begun = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - begun


def ceiling(
    rows: int, inner: int, columns: int, dtype: torch.dtype, device: torch.device, tries: int = 30
) -> float:
    """Return the FLOP/s of a matrix product (rows, inner) x (inner, columns), the fastest of many tries."""
    a, b = (torch.randn(*shape, device=device).to(dtype) for shape in ((rows, inner), (inner, columns)))
    a @ b
    return 2 * rows * inner * columns / min(timed(lambda: a @ b, device) for _ in range(tries))


def spread(ratios: list[float]) -> dict[str, float]:
    found = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return {name: round(value, 3) for name, value in found.items()}


def table(ratios: Mapping[str, Mapping[str, float]]) -> str:
    columns = ("median", "min", "max", "cpu", "flops")
    lines = [" " * 44 + "".join(f"{column:>8}" for column in columns)]
    lines += [f"{name:44}" + "".join(f"{found[c]:8.3f}" for c in columns) for name, found in ratios.items()]
    return "\n".join(lines)


@functools.cache
@torch.no_grad()
def _network(config: BackboneConfig) -> Backbone:
    """Return a network with noise added to the official initialisation.

    Its final layer is zero, so without noise all losses would be equal.
    """
    model = network_of(config)
    initialize(model, Streams(0))
    for name, parameter in model.named_parameters():
        parameter.add_(0.02 * Streams(0).normal(f"signal/{name}", [0], parameter.shape)[0])
    return model
