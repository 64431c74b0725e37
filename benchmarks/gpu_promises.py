"""The promises on a device, by tiny runs on the embedded digits.

The draws are hashed, so that two machines can be compared; a method with its knobs off is compared with
vanilla, a run that is killed and continued with an unbroken one, and losses with released code, if its golden
files are given.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_parts import Scale
from harness.assembly.resolve import load_spec
from harness.config.spec import RunSpec
from harness.data.open import open_dataset, split
from harness.flow.golden import verify
from harness.records import checkpoint, checkpoint_files
from harness.records.record import Record
from harness.train.loop import train
from harness.train.prefetch import prepare_batches
from harness.train.progress import Silent
from harness.train.state import build_run

SETTINGS = (
    "backbone.size=pico", "train.batch_size=8", "train.steps=12", "train.log_every=1",
    "train.checkpoint_every=4", "train.learning_rate=1e-3", "ema.decay=0.9", "runtime.threads=1",
    "data.held_out=0.5", "eval.every=12", "eval.samples=8", "eval.sampler_steps=2",
    'eval.metrics=["loss:held_out"]',
)  # fmt: skip
OFF = {
    "self_flow": ("method.gamma=0", "method.mask_ratio=0"),
    "repa": ("method.coefficient=0",),
}
KILLED_AFTER = 7
SHARED = [Path(__file__).parents[above] / "shared" / "golden" for above in (1, 2)]
"""Folders of golden files, in the checkout and next to it, unless FLOWRACE_GOLDEN names another."""

# Any: JSON.
Found = dict[str, Any]


def promises(scale: Scale, device: torch.device, found: Found) -> None:
    """Add whether each promise holds on a device, and the hash of the draws of a step."""
    held: dict[str, bool] = {}
    found["held"] = held
    found["draws_sha256"], held["same draws as on the host"] = _draws(_spec(device, "method.name=self_flow"))
    if files := _golden_files():
        checks = {file.stem: verify(file, device) for file in files}
        found["verify"] = {name: max(check.max_abs_error for check in own) for name, own in checks.items()}
        held["released numbers to 1e-5"] = all(check.passed for own in checks.values() for check in own)
    else:
        found["verify"] = "not checked: no golden files, name their folder with --golden"
    with tempfile.TemporaryDirectory() as folder:
        flow = _trained(_spec(device), Path(folder))
        for name, words in OFF.items():
            other = _trained(_spec(device, f"method.name={name}", *words), Path(folder))
            held[f"{name} with knobs off is flow"] = _outcome(other) == _outcome(flow)
        held["killed and continued is unbroken"] = _continues(device, Path(folder))


def _golden_files() -> list[Path]:
    named = os.environ.get("FLOWRACE_GOLDEN")
    folders = [Path(named)] if named else SHARED
    return sorted(file for folder in folders for file in folder.glob("*.safetensors"))


def _spec(device: torch.device, *words: str) -> RunSpec:
    return load_spec("digits", (*SETTINGS, f"runtime.device={device}", *words))


def _trained(spec: RunSpec, out: Path) -> Record:
    return Record(train(spec, out, Silent()))


def _outcome(record: Record) -> list[Any]:
    """Return what two runs with equal bits share: losses, validation loss, and weights of both networks."""
    saved = checkpoint.load(checkpoint_files.checkpoints(record.path / "checkpoints")[-1])
    values = [event["loss"] for event in record.of("train")], record.of("eval")[-1]["metrics"]
    return [*values, *(checkpoint.digest(saved.part(name)) for name in ("model", "ema"))]


def _draws(spec: RunSpec) -> tuple[str, bool]:
    """Return the hash of samples, noise and times of a step, and whether those on the device equal them."""
    dataset, device = open_dataset(spec.data), torch.device(spec.runtime.device)
    run = build_run(spec, dataset, split(dataset, spec.data.held_out), device)
    batch = run.feed.batch(np.arange(spec.train.batch_size))
    tensors = _drawn(batch, run.method.draw(run.streams, batch))
    prepared = next(prepare_batches([batch], run.method, run.streams, pin=device.type == "cuda"))
    moved = _drawn(*prepared.to(device))
    digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()
    return digest, all(torch.equal(a, b.cpu()) for a, b in zip(tensors, moved, strict=True))


# Any: a batch and a draw.
def _drawn(batch: Any, draw: Any) -> list[Tensor]:
    return [batch.x0, batch.y, draw.noise, draw.times.levels, draw.times.which]


def _continues(device: torch.device, folder: Path) -> bool:
    """Return whether a run in bfloat16 that was killed between two checkpoints ends with the bits of an
    unbroken one."""
    words = ("method.name=self_flow", "train.precision=bfloat16")
    spec, unbroken = _spec(device, *words), folder / "unbroken"
    expected = _outcome(_trained(spec, unbroken))
    shutil.rmtree(unbroken)
    command = [sys.executable, "-m", "benchmarks.gpu_promises", str(device), str(folder / "killed"), *words]
    ended = subprocess.run(command, check=False).returncode
    if ended != -signal.SIGKILL:
        raise RuntimeError(f"the run that kills itself ended with exit code {ended}")
    begun = Record(folder / "killed" / spec.id).of("train")
    continued = _trained(spec, folder / "killed")
    # Otherwise nothing was continued.
    assert 0 < len(begun) < spec.train.steps
    return _outcome(continued) == expected


class Killed(Silent):
    """Kills the process after some steps."""

    def step(self, step: int, loss: float) -> None:
        if step == KILLED_AFTER:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    train(_spec(torch.device(sys.argv[1]), *sys.argv[3:]), Path(sys.argv[2]), Killed())
