"""Seconds from the command to the first step: cold cache, warm cache, and resumed.

    python -m benchmarks.start [--before CHECKOUT] [--rounds 2] [--data digits cifar10] [--extractor local]

Every start is a separate process of `flowrace run` with a pico network. It is timed until its first training
event is on disk, then stopped by a signal, which writes a checkpoint. `cold` begins with an empty cache,
`warm` is another seed with the cache of `cold`, and `resume` is the command of `warm` again. CIFAR-10 is read
from `FLOWRACE_DATA` (or ../shared/data); if it is missing, 50,000 generated images of its shape take its
place. `--before` names a checkout of an earlier version, whose starts are interleaved with ours. Writes
benchmarks/results/start.json.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.sides import machine

ROOT = Path(__file__).parents[1]
POLL, LIMIT = 0.02, 1800.0
"""Seconds between two looks at the record, and the limit of one start."""
SMALL = (
    "backbone.size=pico", "train.batch_size=16", "train.steps=100000", "train.log_every=1",
    "train.checkpoint_every=100000", "eval.every=100000", "train.precision=float32",
)  # fmt: skip


def pictures(folder: Path) -> Path:
    """Write 50,000 structured images of CIFAR-10's shape as parquet, encoded as PNG, and return the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    random = np.random.default_rng(0)
    bases = random.integers(0, 256, (10, 4, 4, 3))
    labels = np.arange(50_000) % 10
    rows = []
    for label in labels:
        coarse = np.clip(bases[label] + random.normal(0, 40, (4, 4, 3)), 0, 255).astype(np.uint8)
        content = io.BytesIO()
        Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC).save(content, "png")
        rows.append({"bytes": content.getvalue(), "path": ""})
    file = folder / "train.parquet"
    pq.write_table(pa.table({"image": rows, "label": labels}), file)
    return file


def settings_of(data: str, folder: Path) -> tuple[str, ...]:
    """Return preset and overrides of a data set."""
    if data == "digits":
        return ("digits",)
    shared = (
        Path(os.environ.get("FLOWRACE_DATA", ROOT.parent / "shared" / "data")) / "cifar10" / "train.parquet"
    )
    file = shared if shared.is_file() else pictures(folder)
    return ("cifar10", f"data.root={file}")


def first_event(events: Path, known: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a record has more than `known` training events."""
    begun = time.perf_counter()
    while time.perf_counter() - begun < LIMIT:
        if trained(events) > known:
            return
        if process.poll() is not None:
            raise RuntimeError(f"the run ended with code {process.returncode} before its first step")
        time.sleep(POLL)
    raise RuntimeError(f"no step within {LIMIT:.0f} s")


def trained(events: Path) -> int:
    """Return the number of training events of a record."""
    return events.read_bytes().count(b'"kind":"train"') if events.exists() else 0


class Start(NamedTuple):
    """Seconds to the first step: of the clock, and of the processor, which other load moves less."""

    wall: float
    processor: float


def processor_seconds(process: subprocess.Popen[bytes]) -> float:
    """Return user and system seconds of a running process on Linux; NaN elsewhere."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(checkout: Path, given: tuple[str, ...], out: Path, cache: Path) -> Start:
    """Start a run, and return the seconds to its first new training event; then stop it at a checkpoint."""
    preset, *overrides = given
    words = [word for override in (*overrides, *SMALL) for word in ("--set", override)]
    command = [
        sys.executable,
        "-m",
        "harness.cli.main",
        "run",
        preset,
        *words,
        "--out",
        str(out),
        "--no-track",
    ]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "FLOWRACE_CACHE": str(cache)}
    found = list(out.glob("*/events.jsonl"))
    known = trained(found[0]) if found else 0
    begun = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--quiet"],
        cwd=checkout,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not (found := list(out.glob("*/events.jsonl"))) and process.poll() is None:
            time.sleep(POLL)
        if not found:
            raise RuntimeError(f"{' '.join(command)} ended with code {process.returncode}")
        first_event(found[0], known, process)
        seconds = Start(time.perf_counter() - begun, processor_seconds(process))
        process.send_signal(signal.SIGINT)
        process.wait()
    finally:
        process.kill()
    return seconds


def measured(checkout: Path, given: tuple[str, ...], folder: Path) -> dict[str, Start]:
    """Return the seconds of the three starts of one checkout, with a separate cache."""
    cache = folder / "cache"
    return {
        "cold": start(checkout, (*given, "seed=1"), folder / "first", cache),
        "warm": start(checkout, (*given, "seed=2"), folder / "second", cache),
        "resume": start(checkout, (*given, "seed=2"), folder / "second", cache),
    }


def summary(rounds: list[dict[str, Start]]) -> dict[str, Any]:
    """Return the medians over rounds, and all seconds, of each kind of start."""
    found = {}
    for kind in rounds[0]:
        starts = [each[kind] for each in rounds]
        found[kind] = {
            "median": round(statistics.median(each.wall for each in starts), 2),
            "seconds": [round(each.wall, 2) for each in starts],
            "processor": [round(each.processor, 2) for each in starts],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, help="Checkout of an earlier version.")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--data", nargs="+", choices=["digits", "cifar10"], default=["digits", "cifar10"])
    parser.add_argument("--metrics", nargs="+", default=["fd:local"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "start.json")
    options = parser.parse_args()
    versions = {"after": ROOT} | ({"before": options.before.resolve()} if options.before else {})
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for data in options.data:
            given = (*settings_of(data, Path(temporary)), f"eval.metrics={json.dumps(options.metrics)}")
            rounds: dict[str, list[dict[str, Start]]] = {version: [] for version in versions}
            for number in range(options.rounds):
                for version, checkout in versions.items():
                    folder = Path(temporary) / f"{data}-{version}-{number}"
                    folder.mkdir()
                    rounds[version].append(measured(checkout, given, folder))
                    print(data, version, rounds[version][-1], flush=True)
            found[data] = {version: summary(runs) for version, runs in rounds.items()}
    about = {"metrics": options.metrics, "rounds": options.rounds, "settings": SMALL}
    import torch

    options.out.write_text(
        json.dumps({**machine(torch.device("cpu")), **about, "data": found}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
