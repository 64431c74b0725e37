"""All GPU measurements in one call: the step, the fraction of peak FLOP/s, memory by phase, and sampling.

    python -m benchmarks.gpu [--minutes 8] [--device cuda] [--tiny]

Parts run in order of importance; those for which the time does not suffice are listed as left out. Writes
benchmarks/results/gpu.json and prints a short table. `--device cpu --tiny` runs all parts at a small scale
without compilation, to check that they work.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.sampling import speeds
from benchmarks.sides import Kind, Race, Side, ceiling, machine, problem, timed
from harness.costs.meter import clock
from harness.runtime.environment import prepare
from harness.runtime.random_streams import Streams


@dataclass(frozen=True)
class Scale:
    """The sizes of the measured problems."""

    large: str = "XL"
    middle: str = "B"
    tokens: int = 256
    batch: int = 64
    memory_batch: int = 256
    matrix: int = 8192
    rounds: int = 10
    compiled: bool = True

    def kind(self, method: str, *, released: bool = False) -> Kind:
        return Kind(method, released, "bfloat16", self.compiled)


TINY = Scale("pico", "pico", 16, 4, 4, 64, 2, compiled=False)


def product(scale: Scale, device: torch.device) -> dict[str, Any]:
    """Measure the FLOP/s of a large matrix product in bfloat16."""
    side = scale.matrix
    return {"flops_per_second": ceiling(side, side, side, torch.bfloat16, device, 10 * scale.rounds)}


def large(scale: Scale, device: torch.device) -> dict[str, Any]:
    """Measure steps of vanilla, Self-Flow, SRA and REPA at the largest size.

    The FLOP/s of vanilla do not count optimizer and EMA.
    """
    config, batch = problem(scale.large, scale.tokens, scale.batch)
    race = Race(config, scale.large, batch, device)
    flow = scale.kind("flow")
    others = {method: scale.kind(method) for method in ("self_flow", "sra", "repa")}
    race.enter(flow, *others.values())
    race.run(scale.rounds)
    seconds = race.about()["median_seconds"][str(flow)]
    return {
        **race.about(),
        "flow flops_per_second": race.flops[str(flow)] / max(seconds, 1e-9),
        "ratios": {f"{name} / flow": race.ratio(kind, flow) for name, kind in others.items()},
    }


def released(scale: Scale, device: torch.device) -> dict[str, Any]:
    """Compare ours with the released arithmetic at the middle size, both compiled and in bfloat16."""
    config, batch = problem(scale.middle, scale.tokens, scale.batch)
    race = Race(config, scale.middle, batch, device)
    pairs = {}
    for method in ("flow", "self_flow"):
        pairs[f"released {method} / ours"] = scale.kind(method, released=True), scale.kind(method)
    pairs["self_flow / flow"] = pairs["released self_flow / ours"][1], pairs["released flow / ours"][1]
    race.enter(*dict.fromkeys(kind for pair in pairs.values() for kind in pair))
    race.run(scale.rounds)
    return {**race.about(), "ratios": {name: race.ratio(*pair) for name, pair in pairs.items()}}


def memory(scale: Scale, device: torch.device) -> dict[str, Any]:
    """Measure peak bytes by phase for Self-Flow at the largest size, with and without checkpointing."""
    found: dict[str, Any] = {}
    config, batch = problem(scale.large, scale.tokens, scale.memory_batch)
    for name, checkpointed in {"activations computed again": True, "activations kept": False}.items():
        meter = clock(device)
        kind = replace(scale.kind("self_flow"), checkpointed=checkpointed)
        try:
            side = Side(kind, config, scale.large, device, meter.phase)
            on_device = batch.to(device)
            draw = side.method.draw(Streams(0), on_device).to(device)
            side.step(on_device, draw)
            seconds = timed(lambda: side.step(on_device, draw), device)  # noqa: B023
            found[name] = {"seconds": round(seconds, 4), "bytes": meter.peaks}
        except torch.OutOfMemoryError:
            found[name] = {"bytes": "more than the device has"}
        # Release the memory before the next measurement.
        side = on_device = draw = None
        _free(device)
    return found


def sampling(scale: Scale, device: torch.device) -> dict[str, Any]:
    options = SimpleNamespace(
        size=scale.middle,
        tokens=scale.tokens,
        batch=4 * scale.batch,
        steps=8,
        guidance=1.5,
        rounds=3,
        eager=not scale.compiled,
    )
    return speeds(options, device)


PARTS: dict[str, tuple[Callable[[Scale, torch.device], dict[str, Any]], float]] = {
    "ceiling": (product, 5),
    "large": (large, 120),
    "released": (released, 90),
    "memory": (memory, 90),
    "sampling": (sampling, 60),
}
"""The measured parts, and the seconds that each needs."""


def measured(scale: Scale, device: torch.device, seconds: float) -> dict[str, Any]:
    """Run the parts for which the time suffices."""
    begun, found, left_out = time.monotonic(), {}, []
    for name, (part, needs) in PARTS.items():
        if time.monotonic() - begun + needs > seconds:
            left_out.append(name)
            continue
        print(f"{time.monotonic() - begun:5.0f} s  {name}", flush=True)
        found[name] = part(scale, device)
        _free(device)
    return {**machine(device), "scale": vars(scale), **found, "left_out": left_out}


def summary(found: dict[str, Any]) -> str:
    """Return the results as a short table."""
    rows = {}
    if "ceiling" in found:
        top = found["ceiling"]["flops_per_second"]
        rows["matrix products, bf16"] = f"{top / 1e12:.1f} TFLOP/s"
        if "large" in found:
            rows["flow, share of that"] = f"{found['large']['flow flops_per_second'] / top:.1%}"
    for part in ("large", "released"):
        for name, ratio in found.get(part, {}).get("ratios", {}).items():
            rows[f"{part}: {name}"] = f"{ratio['median']:.3f}  (FLOPs {ratio['flops']:.3f})"
    for name, cost in found.get("memory", {}).items():
        most = max(cost["bytes"].values(), default=0) if isinstance(cost["bytes"], dict) else cost["bytes"]
        rows[f"memory: {name}"] = f"{most / 1e9:.1f} GB" if isinstance(most, int) else most
    for name, ratio in found.get("sampling", {}).get("released loop / ours", {}).items():
        rows[f"sampling: released loop / {name}"] = f"{ratio['median']:.3f}"
    if found["left_out"]:
        rows["left out for lack of time"] = ", ".join(found["left_out"])
    return "\n".join(f"{name:44} {value}" for name, value in rows.items())


def _free(device: torch.device) -> None:
    gc.collect()
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device found; to check the script on a CPU: --device cpu --tiny")
    prepare(0)
    found = measured(TINY if options.tiny else Scale(), device, 60 * options.minutes)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(summary(found))


if __name__ == "__main__":
    main()
