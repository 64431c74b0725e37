"""Where the time of a training step goes, by kind of operation.

    python -m benchmarks.profile [--size S] [--tokens 256] [--batch 8]

Writes benchmarks/results/profile.md.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.sides import Kind, Side, machine, problem
from harness.backbone.sizes import SIZES
from harness.draws import Streams
from harness.environment import prepare

KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::convolution", "aten::mkldnn"),
    "attention": ("aten::_scaled_dot_product",),
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
STEPS = 3


def shares(kind: Kind, size: str, tokens: int, batch_size: int, device: torch.device) -> dict[str, float]:
    """Seconds a step by kind of operation, without what an operation spends in others that it calls."""
    config, batch = problem(size, tokens, batch_size)
    side = Side(kind, config, size, device)
    batch = batch.to(device)
    draw = side.method.draw(Streams(0), batch).to(device)
    side.step(batch, draw)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(STEPS):
            side.step(batch, draw)
    found: dict[str, float] = defaultdict(float)
    for event in seen.key_averages():
        found[_kind_of(event.key)] += event.self_cpu_time_total / STEPS / 1e6
    return found


def _kind_of(name: str) -> str:
    return next((kind for kind, starts in KINDS.items() if name.startswith(starts)), "the rest")


def written(columns: dict[str, dict[str, float]], about: str) -> str:
    """A Markdown table: seconds and share of each kind."""
    lines = ["# Where a training step goes", "", about, ""]
    lines += ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for kind in (*KINDS, "the rest"):
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
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "profile.md")
    options = parser.parse_args()
    prepare(0)
    device = torch.device("cpu")
    kinds = (Kind("flow"), Kind("self_flow"), Kind("sra"), Kind("self_flow", released=True))
    columns = {str(kind): shares(kind, options.size, options.tokens, options.batch, device) for kind in kinds}
    about = machine(device)
    text = written(
        columns,
        f"SiT-{options.size}/2, {options.tokens} tokens, batch {options.batch}, float32, eager; {about['device']}, "
        f"{about['threads']} threads, torch {about['torch']}, load average {about['load_average'][0]}. "
        "Made by `python -m benchmarks.profile`.",
    )
    options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
