"""Tiny runs for the tests: a pico network on the digits, seconds long."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.assembly.resolve import load_spec
from harness.config.spec import RunSpec
from harness.records import checkpoint, checkpoint_files
from harness.records.integrity import misfits
from harness.records.record import Record
from harness.train.progress import Quiet

TINY = (
    "backbone.size=pico", "train.batch_size=8", "train.steps=12", "train.log_every=1",
    "train.checkpoint_every=4", "train.learning_rate=1e-3", "eval.every=6", "eval.samples=24",
    "eval.sampler=heun", "eval.sampler_steps=2", "eval.batch_size=24", "ema.decay=0.9", "runtime.threads=1",
    "data.held_out=0.5",
)  # fmt: skip


def tiny(*overrides: str) -> RunSpec:
    return load_spec("digits", (*TINY, *overrides))


def trained(spec: RunSpec, out: Path) -> Record:
    from harness.train.loop import train

    return Record(train(spec, out, Quiet()))


def torchrun(source: str, overrides: Iterable[str], out: Path) -> subprocess.CompletedProcess[str]:
    """Run `flowrace run` as two processes of this machine, with the import path of this process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--master-addr=127.0.0.1",
        f"--master-port={port}",
    ]
    settings = [word for override in overrides for word in ("--set", override)]
    run = ["harness.cli.main", "run", source, *settings, "--out", str(out), "--no-track"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", *launch, "-m", *run]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def events(record: Record) -> list[dict[str, Any]]:
    """Return the events without their seconds, which no two runs share."""
    return [
        {name: value for name, value in event.items() if name != "seconds"}
        for event in Record(record.path).events
    ]


def weights(record: Record) -> str:
    """Return the hash of the final weights, EMA and optimizer state."""
    return checkpoint.load(checkpoint_files.checkpoints(record.path / "checkpoints")[-1]).meta["sha256"]


def losses(record: Record) -> list[float]:
    return [event["losses"]["flow"] for event in record.of("train")]


def part(record: Record, name: str) -> str:
    saved = checkpoint.load(checkpoint_files.checkpoints(record.path / "checkpoints")[-1])
    return checkpoint.digest(saved.part(name))


def everything(record: Record) -> str:
    """Return all files of a run as text to compare, with what does not fit together in them."""
    folders = [record.path / name for name in ("checkpoints", "samples", "ema")]
    files = sorted(f"{p.parent.name}/{p.name}" for folder in folders for p in folder.glob("[!.]*"))
    contents = [hashlib.sha256((record.path / name).read_bytes()).hexdigest() for name in files]
    return json.dumps([events(record), weights(record), files, contents, misfits(record)], indent=1)
