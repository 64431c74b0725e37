"""Synthetic run records with curves whose times to target are known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from PIL import Image

from harness.config.tables import set_path
from harness.records.record import Record
from harness.records.record_writer import RecordWriter

METRIC = "fd:local"
PHASES = {"student": 0.02, "optimizer": 0.002, "ema": 0.001, "data": 0.0005}
"""Seconds per step, by phase."""
ENVIRONMENT = {
    "python": "3.11.7",
    "packages": {"flowrace": "0.1.0", "torch": "2.15.0"},
    "device": "cpu",
    "device_name": "x86_64",
    "devices": 1,
    "threads": 1,
    "host": "nowhere",
    "data_fingerprint": "0b7e9c3202d7bcd2",
}


def power_law(scale: float, slope: float) -> Callable[[float], float]:
    """Return the curve scale * step ** -slope, a straight line in logs.

    It reaches a target at step (scale / target) ** (1 / slope).
    """
    return lambda step: scale * step**-slope


PLAIN = power_law(1000.0, 0.5)


def write_run(
    path: Path,
    method: str = "flow",
    seed: int = 0,
    *,
    metric: Callable[[float], float] = PLAIN,
    others: Mapping[str, Callable[[float], float]] | None = None,
    grid: Iterable[int] = range(100, 2001, 100),
    set_: Mapping[str, Any] | None = None,
    phases: Mapping[str, float] = PHASES,
    flops: int = 1_000_000,
    status: str = "done",
    environment: Mapping[str, Any] | None = None,
    protocol: str = "9cece13e0f6d",
    pictures: bool = False,
) -> Record:
    """Write a run directory like the trainer's; `status` is done, failed (with a reason) or stopped."""
    spec: dict[str, Any] = {"seed": seed, "method": {"name": method}, "train": {"batch_size": 64}}
    for name, value in (set_ or {}).items():
        set_path(spec, name, value)
    with RecordWriter(path) as record:
        record.write_spec(tomli_w.dumps(spec))
        record.begin(ENVIRONMENT | dict(environment or {}), after_step=0)
        for count, step in enumerate(grid, start=1):
            seconds = {name: value * step for name, value in phases.items()} | {
                "warmup": 1.5,
                "eval": 0.7 * count,
            }
            spent = {"images": 64 * step, "flops": flops * step, "seconds": seconds}
            record.append({"kind": "train", "step": step, "loss": 1.0, **spent})
            values = {
                name: {"mean": float(curve(step)), "low": None, "high": None, "n": 512}
                for name, curve in ({METRIC: metric} | dict(others or {})).items()
            }
            record.append({"kind": "eval", "step": step, "metrics": values, "protocol": protocol, **spent})
            if pictures:
                write_picture(path / "samples" / f"step-{step:08d}.png", seed, 1 / count)
        if status == "done":
            record.finish({"images": 64 * step})
        if status == "failed":
            record.fail({"reason": f"the loss is not finite at step {step}"})
    return Record(path)


def write_picture(file: Path, seed: int, noise: float) -> None:
    """Write a grid like the evaluator's: 4 rows of 10 tiles of 8x8 pixels, one pixel between tiles."""
    grain = np.random.default_rng(seed).random((35, 89))
    shape = np.add.outer(np.cos(np.arange(35) * 0.7), np.sin(np.arange(89) * 0.7)) / 4 + 0.5
    Image.fromarray((255 * (noise * grain + (1 - noise) * shape)).astype(np.uint8)).save(file)


def write_race(
    folder: Path, speedups: Mapping[str, float], *, seeds: int = 3, noise: float = 0.03, **run: Any
) -> Path:
    """Write arms whose curves are the baseline's, faster by these factors.

    Log-normal noise per seed is shared by the runs of a pair; each run adds its own.
    """
    rng = np.random.default_rng(7)
    for seed in range(seeds):
        shared = rng.normal(0, noise)
        for method, factor in speedups.items():
            speed = factor * math.exp(shared + rng.normal(0, noise))
            curve = lambda step, speed=speed: 3000 * (1 + speed * step / 20) ** -1.2 + 3  # noqa: E731
            write_run(folder / f"{method}-{seed}", method, seed, metric=curve, **run)
    return folder
