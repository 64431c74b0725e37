"""All GPU measurements in one call of under 8 minutes: promises, steps, MFU, sampling, evaluation, memory.

    python -m benchmarks.gpu [--minutes 8] [--device cuda] [--golden DIR] [--only PART ...] [--tiny]

Parts run in order of importance, each with a time limit, after which its results so far are kept. Those for
which no time is left are listed. benchmarks/results/gpu.json is written after each part, and a short table is
printed at the end, which is at the limit whatever the device does. `--device cpu --tiny` runs all parts at a
small scale without compilation, to check that they work.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import gpu_parts as parts
from benchmarks.gpu_parts import Scale
from benchmarks.gpu_promises import promises
from benchmarks.sides import machine
from harness.errors import first_line
from harness.files.files import write_atomic
from harness.runtime.distributed import pick_device
from harness.runtime.environment import describe, prepare

BEGUN = time.monotonic()
RESULTS = Path(__file__).parent / "results"
TINY = Scale("pico", "pico", "4x64x4", 16, 4, 4, 4, 4, 64, 2, compiled=False)
MINUTES = 8.0
RESERVED = 25
"""Seconds before this module is imported, and at the end."""
DENSE_BF16 = {"B200": 2250e12, "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12}
"""FLOP/s of dense products in bfloat16 by NVIDIA's data sheets of the SXM modules, by a part of the name."""

# Any: JSON.
Found = dict[str, Any]


class OutOfTime(BaseException):
    """The time limit of a part. No handler of ordinary errors catches it."""


class Part(NamedTuple):
    """A group of measurements, which adds its results to a dictionary as soon as it has them."""

    measure: Callable[[Scale, torch.device, Found], None]
    least: float
    """Seconds below which it is not begun."""
    most: float
    """Seconds after which it is cut."""


PARTS = {
    "ceiling": Part(parts.ceiling_of_products, 2, 15),
    "promises": Part(promises, 20, 90),
    "middle": Part(parts.middle, 30, 110),
    "large": Part(parts.large, 40, 110),
    "text": Part(parts.text, 30, 70),
    "sampling": Part(parts.sampling, 20, 50),
    "evaluation": Part(parts.evaluation, 10, 30),
    "released": Part(parts.released, 30, 70),
    "memory": Part(parts.memory, 30, 70),
}


def measured(
    chosen: Mapping[str, Part],
    scale: Scale,
    device: torch.device,
    ends: float,
    found: Found,
    keep: Callable[[], None],
    stretch: float = 1.0,
) -> None:
    """Run the parts for which the time suffices, until `ends` on the monotonic clock at the latest.

    `stretch` multiplies the limits of parts. `found` has the results so far at any moment, and `keep` is
    called after each part.
    """
    found |= {"scale": vars(scale), "left_out": [], "failed": []}
    for name, part in chosen.items():
        begun = time.monotonic()
        if ends - begun < part.least:
            found["left_out"].append(name)
            continue
        print(f"{begun - BEGUN:5.0f} s  {name}", flush=True)
        results = found[name] = {}
        try:
            with limited(min(stretch * part.most, ends - begun)):
                part.measure(scale, device, results)
        except OutOfTime:
            results["cut"] = True
        # The other parts still run, for example after a kernel that this device does not have.
        except Exception as error:
            results["error"] = f"{type(error).__name__}: {first_line(error)}"
            found["failed"].append(name)
        results["seconds"] = round(time.monotonic() - begun, 1)
        found["mfu"] = utilisation(found)
        keep()
        release(device)


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` in the block after some seconds."""

    def ring(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def release(device: torch.device) -> None:
    """Free the memory of a part, as far as the device still answers."""
    gc.collect()
    torch.compiler.reset()
    if device.type == "cuda":
        try:
            torch.cuda.empty_cache()
        except RuntimeError as error:
            print(f"the device does not answer: {first_line(error)}", file=sys.stderr)


def utilisation(found: Found) -> dict[str, dict[str, float]]:
    """Return for each raced step its counted FLOP/s, and their share of two peaks.

    The FLOPs are those of forward and backward pass, without recomputation; the time includes optimizer and
    EMA. `mfu` is the share of the data sheet's peak, and `of_products` that of a large matrix product here.
    """
    product = found.get("ceiling", {}).get("flops_per_second")
    name = str(found.get("device", ""))
    sheet = next((peak for part, peak in DENSE_BF16.items() if part in name), None)
    shares = {}
    for part, label in {"middle": "SiT-{}/2", "large": "SiT-{}/2", "text": "MMDiT {}"}.items():
        results = found.get(part, {})
        for kind, seconds in results.get("median_seconds", {}).items():
            speed = results["flops"][kind] / max(seconds, 1e-9)
            row = {"flops_per_second": speed}
            row |= {"of_products": round(speed / product, 4)} if product else {}
            row |= {"mfu": round(speed / sheet, 4)} if sheet else {}
            shares[f"{label.format(found['scale'][part])} {kind}"] = row
    return shares


def summary(found: Found) -> str:
    """Return the results as a short table."""
    rows = {}
    if "flops_per_second" in found.get("ceiling", {}):
        rows["matrix products, bf16"] = f"{found['ceiling']['flops_per_second'] / 1e12:.1f} TFLOP/s"
    for name, held in found.get("promises", {}).get("held", {}).items():
        rows[f"promise: {name}"] = "held" if held else "BROKEN"
    for name, row in found.get("mfu", {}).items():
        shares = [f"{row[key]:.1%} {words}" for key, words in WORDS.items() if key in row]
        rows[name] = f"{row['flops_per_second'] / 1e12:.2f} TFLOP/s  {', '.join(shares)}"
    for part in ("middle", "large", "text", "released"):
        for name, ratio in found.get(part, {}).get("ratios", {}).items():
            rows[f"{part}: {name}"] = f"{ratio['median']:.3f}  (FLOPs {ratio['flops']:.3f})"
    for name, ratio in found.get("sampling", {}).get("released loop / ours", {}).items():
        speed = found["sampling"]["images_per_second"][name]
        rows[f"sampling: released loop / {name}"] = f"{ratio['median']:.3f}  ({speed:.1f} images/s)"
    if "separate / overlapped" in found.get("evaluation", {}):
        rows["evaluation: separate / overlapped"] = f"{found['evaluation']['separate / overlapped']:.3f}"
    for name, cost in found.get("memory", {}).get("sides", {}).items():
        most = max(cost["bytes"].values(), default=0) if isinstance(cost["bytes"], dict) else cost["bytes"]
        rows[f"memory: {name}"] = f"{most / 1e9:.1f} GB" if isinstance(most, int) else most
    ended = [name for name in PARTS if found.get(name, {}).get("cut")]
    lists = {"cut at its limit": ended, "left out for lack of time": found["left_out"]}
    lists["failed"] = found["failed"]
    rows |= {words: ", ".join(names) for words, names in lists.items() if names}
    return "\n".join(f"{name:44} {value}" for name, value in rows.items())


WORDS = {"mfu": "of the data sheet", "of_products": "of the products"}


def main() -> None:
    options = _options()
    ends = BEGUN + 60 * options.minutes - RESERVED
    # At a small scale threads cost more than they gain.
    prepare(1 if options.tiny else 0)
    device = pick_device(options.device)
    found: Found = {**machine(device), "environment": describe(device, 1)}

    def keep() -> None:
        write_atomic(options.out, (json.dumps(found, indent=1) + "\n").encode())

    def give_up() -> None:
        try:
            keep()
            print(f"{summary(found)}\nended at the limit of {options.minutes:g} minutes", flush=True)
        finally:
            os._exit(1)

    # A signal arrives only between two calls of Python, and a call to a device may never return.
    watch = threading.Timer(max(ends + RESERVED / 2 - time.monotonic(), 1), give_up)
    watch.daemon = True
    watch.start()
    if options.golden is not None:
        os.environ["FLOWRACE_GOLDEN"] = str(options.golden)
    chosen = {name: part for name, part in PARTS.items() if name in (options.only or PARTS)}
    scale = TINY if options.tiny else Scale()
    measured(chosen, scale, device, ends, found, keep, stretch=max(1.0, options.minutes / MINUTES))
    watch.cancel()
    print(summary(found))
    held = found.get("promises", {}).get("held", {})
    unchecked = "promises" in chosen and not held
    if found["failed"] or unchecked or not all(held.values()):
        sys.exit(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--golden", type=Path, help="folder of golden files of released code")
    parser.add_argument("--only", nargs="+", choices=list(PARTS))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    options = parser.parse_args()
    if options.golden is not None and not any(options.golden.glob("*.safetensors")):
        parser.error(f"--golden {options.golden} has no *.safetensors file")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("no CUDA device found; to check the script on a CPU: --device cpu --tiny")
    return options


if __name__ == "__main__":
    main()
