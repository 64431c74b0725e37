"""The time of a training step by kind of operation.

    python -m benchmarks.profile [--size S] [--tokens 256] [--batch 8] [--rounds 5]

Writes benchmarks/results/profile.md.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.sides import Kind, Side, machine, problem
from harness.backbone.sizes import SIZES
from harness.runtime.environment import prepare
from harness.runtime.random_streams import Streams

KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::convolution", "aten::mkldnn"),
    "attention": ("aten::_scaled_dot_product", "aten::bmm", "aten::_softmax"),
    "compiled": ("graph_", "cpp_fused", "## Call Compiled"),
    "norms and activations": ("aten::native_layer_norm", "aten::gelu", "aten::silu"),
    "modulation and residuals": (
        "aten::mul",
        "aten::add",
        "aten::where",
        "aten::sum",
        "aten::sub",
        "aten::div",
    ),
    "copies": ("aten::copy_", "aten::cat", "aten::stack", "aten::clone"),
    "fills": ("aten::fill_", "aten::zero_"),
    "optimizer": ("aten::_fused_adamw",),
    "EMA": ("aten::lerp", "aten::_foreach_lerp"),
}
FAST = {"precision": "bfloat16", "compiled": True}
TABLES = {
    "float32, eager": [
        Kind("flow"),
        Kind("self_flow"),
        Kind("sra"),
        Kind("flow", released=True),
        Kind("self_flow", released=True),
    ],
    "bfloat16, compiled": [Kind("flow", **FAST), Kind("self_flow", **FAST)],
}
"""In bfloat16 the softmax of attention is part of the compiled code."""


class Contestant:
    """One side, with the seconds of every profiled step by kind of operation."""

    def __init__(self, kind: Kind, size: str, tokens: int, batch: int, device: torch.device) -> None:
        config, samples = problem(size, tokens, batch)
        self.side, self.batch = Side(kind, config, size, device), samples.to(device)
        self.draw = self.side.method.draw(Streams(0), self.batch).to(device)
        self.steps: list[dict[str, float]] = []
        # The first step compiles, the second allocates.
        for _ in range(2):
            self.side.step(self.batch, self.draw)

    def step(self) -> None:
        """Profile a step: the seconds of every operation, without those of the operations that it calls."""
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            self.side.step(self.batch, self.draw)
        found: dict[str, float] = defaultdict(float)
        for event in profiler.key_averages():
            found[_kind_of(event.key)] += event.self_cpu_time_total / 1e6
        self.steps.append(found)

    def seconds(self) -> dict[str, float]:
        """Return the median seconds of each kind over steps."""
        return {kind: median(step[kind] for step in self.steps) for kind in (*KINDS, "the rest")}


def _kind_of(name: str) -> str:
    return next((kind for kind, starts in KINDS.items() if name.startswith(starts)), "the rest")


def written(columns: dict[str, dict[str, float]]) -> str:
    """Return a Markdown table with the seconds and the share of each kind."""
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for kind in (kind for kind in (*KINDS, "the rest") if any(c[kind] for c in columns.values())):
        cells = [f"{c[kind]:.3f} s ({c[kind] / sum(c.values()):.1%})" for c in columns.values()]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(
        [*lines, "| all | " + " | ".join(f"{sum(c.values()):.3f} s" for c in columns.values()) + " |"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="S", choices=list(SIZES))
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "profile.md")
    options = parser.parse_args()
    prepare(0)
    device = torch.device("cpu")
    kinds = [kind for group in TABLES.values() for kind in group]
    sides = {kind: Contestant(kind, options.size, options.tokens, options.batch, device) for kind in kinds}
    for _ in range(options.rounds):
        for side in sides.values():
            side.step()
    about = machine(device)
    text = (
        "# Where a training step goes\n\n"
        f"SiT-{options.size}/2, {options.tokens} tokens, batch {options.batch}; {about['device']}, "
        f"{about['threads']} threads, "
        f"torch {about['torch']}, load average {about['load_average'][0]}. "
        "Of each kind of operation the median of "
        f"{options.rounds} steps; the sides take turns. Made by `python -m benchmarks.profile`.\n"
    )
    for name, group in TABLES.items():
        text += f"\n## {name}\n\n{written({str(kind): sides[kind].seconds() for kind in group})}\n"
    options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
