"""Training steps of the objectives, compared with each other and with the released loop, interleaved.

    python -m benchmarks.step [--size S] [--tokens 256] [--batch 8] [--rounds 5] [--eager] [--only PAIR ...]

All run in one process. Every step has forward and backward passes, gradient clipping, the optimizer and the
EMA. Writes benchmarks/results/step.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from benchmarks.sides import Kind, Race, ceiling, problem, table
from harness.backbone.sizes import SIZES
from harness.runtime.environment import prepare

HALF = {"precision": "bfloat16"}
FLOW, SELF_FLOW, SRA, REPA = (Kind(method) for method in ("flow", "self_flow", "sra", "repa"))
OLD_FLOW, OLD_SELF_FLOW = (Kind(method, released=True) for method in ("flow", "self_flow"))
EAGER = {
    "self_flow / flow": (SELF_FLOW, FLOW),
    "sra / flow": (SRA, FLOW),
    "repa without its encoder / flow": (REPA, FLOW),
    "released self_flow / ours": (OLD_SELF_FLOW, SELF_FLOW),
    "released flow / ours": (OLD_FLOW, FLOW),
}
ROUTED = {"tread / flow": (Kind("tread"), FLOW)}
"""Measured only when asked for by name: their steps cost less than flow's."""
COMPILED = {
    f"released {method} / ours, {words}": (Kind(method, released=True), Kind(method, **options))
    for words, options in {
        "compiled": {"compiled": True},
        "bf16": HALF,
        "bf16 compiled": {"compiled": True, **HALF},
    }.items()
    for method in ("self_flow", "flow")
}


def main() -> None:
    options = _options()
    prepare(0)
    device = torch.device("cpu")
    config, batch = problem(options.size, options.tokens, options.batch)
    race = Race(config, options.size, batch, device)
    usual = EAGER if options.eager else EAGER | COMPILED
    pairs = {name: (EAGER | COMPILED | ROUTED)[name] for name in options.only or usual}
    race.enter(*dict.fromkeys(kind for pair in pairs.values() for kind in pair))
    race.run(options.rounds)
    ratios = {name: race.ratio(*pair) for name, pair in pairs.items()}
    width = SIZES[options.size].width
    products = {
        str(dtype).removeprefix("torch."): round(
            ceiling(len(batch.x0) * config.tokens, width, 4 * width, dtype, device)
        )
        for dtype in (torch.float32, torch.bfloat16)
    }
    what = f"one training step, SiT-{options.size}/2, float32 and eager unless stated otherwise"
    result = {
        "what": what,
        "rounds": options.rounds,
        **race.about(),
        "ratios": ratios,
        "matmul_flops_per_second": products,
    }
    print(table(ratios))
    print(
        "matrix products: "
        + ", ".join(f"{name} {speed / 1e9:.0f} GFLOP/s" for name, speed in products.items())
    )
    options.out.write_text(json.dumps(result, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="S", choices=list(SIZES))
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--eager", action="store_true", help="leave out the compiled variants")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(EAGER | COMPILED | ROUTED),
        help="the pairs to measure; for large networks not all fit in memory",
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "step.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
