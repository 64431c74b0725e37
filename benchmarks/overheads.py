"""A run's overhead outside the training step: draws, data, records and checkpoints, as shares of wall time.

    python -m benchmarks.overheads [--size S] [--pixels 32] [--batch 8] [--steps 80] [--checkpoint-every 40]

Trains on noise of pixels x pixels, (pixels / 2)^2 tokens. Writes benchmarks/results/overheads.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.assembly.resolve import load_spec
from harness.records.record import Record
from harness.runtime.environment import device_name, package_version
from harness.train.loop import train
from harness.train.progress import Quiet

WORK = ("student", "teacher", "encoder", "optimizer", "ema")


class Watch(Quiet):
    """A progress display that keeps the time at which each step was reported."""

    def __init__(self) -> None:
        self.at: dict[int, float] = {}

    def note(self, message: str) -> None:
        pass

    def step(self, step: int, loss: float) -> None:
        self.at[step] = time.perf_counter()


def measured(method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return shares of the time between the second step (the first is a warm-up) and the last."""
    with tempfile.TemporaryDirectory() as folder:
        return _trained(method, options, Path(folder))


def _trained(method: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (1000, options.pixels, options.pixels, 3), dtype=np.uint8)
    np.savez(folder / "noise.npz", images=noise, labels=np.arange(1000) % 10)
    spec = load_spec(
        "digits",
        (
            "data.name=npz", f"data.root={folder / 'noise.npz'}", f"method.name={method}",
            f"backbone.size={options.size}",
            f"train.batch_size={options.batch}", f"train.steps={options.steps}", "train.log_every=1",
            f"train.checkpoint_every={options.checkpoint_every}", f"eval.every={options.steps}",
            "eval.samples=16", "eval.sampler=euler", "eval.sampler_steps=1", "eval.batch_size=16",
        ),
    )  # fmt: skip
    watch = Watch()
    lines = Record(train(spec, folder, watch)).of("train")
    wall = watch.at[options.steps] - watch.at[2]
    booked = {
        phase: lines[-1]["seconds"].get(phase, 0.0) - lines[1]["seconds"].get(phase, 0.0)
        for phase in (*WORK, "data", "checkpoint")
    }
    work = sum(booked[phase] for phase in WORK)
    return {
        "seconds": round(wall, 3),
        "shares of the wall clock": {phase: round(s / wall, 4) for phase, s in booked.items()},
        "overhead": round((wall - work) / work, 4),
        "overhead is": "all that is not student, teacher, encoder, optimizer or ema, over what is",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="S")
    parser.add_argument("--pixels", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--checkpoint-every", type=int, default=40)
    parser.add_argument("--methods", nargs="+", default=["flow", "self_flow"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "overheads.json")
    options = parser.parse_args()
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "methods")}
    found = {method: measured(method, options) for method in options.methods}
    about = {
        "device": device_name(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "torch": package_version("torch"),
    }
    text = json.dumps({**settings, **about, "methods": found}, indent=1)
    print(text)
    options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
