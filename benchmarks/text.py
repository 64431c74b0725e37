"""The text-conditioned network: ours against the arithmetic of the released one, interleaved in one process.

    python -m benchmarks.text [--size micro] [--tokens 256] [--length 77] [--batch 4] [--steps 2]
        [--rounds 5] [--threads 1]

Four pieces of work, each with equal results: a forward and backward pass with one time per sample, one with
two times per sample (Self-Flow's), and Euler samples with guidance, of one prompt per sample and of one
prompt for all. FLOPs are counted. Writes benchmarks/results/text.json.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.released_text import forward, sample
from benchmarks.sides import machine, spread, timed
from harness.backbone.condition import Text, TextShape
from harness.backbone.mmdit import MMDiT, MMDiTConfig
from harness.backbone.sizes import SIZES, TEXT_TO_IMAGE
from harness.backbone.times import Times
from harness.flow.samplers import euler, velocity_field
from harness.runtime.environment import prepare

RESULTS = Path(__file__).parent / "results"
GUIDANCE = 2.0
Work = Callable[[], Tensor]


def network(options: argparse.Namespace) -> MMDiT:
    """Return a network with random weights, which let the text reach the output."""
    side = 2 * math.isqrt(options.tokens)
    size = (SIZES | TEXT_TO_IMAGE)[options.size]
    return MMDiT(MMDiTConfig(size, 2, (4, side, side), 1, text=TextShape(768, options.length)))


def pairs(options: argparse.Namespace) -> dict[str, tuple[Work, Work]]:
    """Return the work of the released arithmetic and ours, by what is done."""
    torch.manual_seed(0)
    model, size = network(options), options.batch
    x, noise = torch.randn(2, size, *model.config.shape)
    features, null = torch.randn(size, options.length, 768), torch.randn(options.length, 768)
    t, s = torch.rand(2, size)
    mask = torch.rand(size, model.config.tokens) < 0.25
    dual = Times.dual(t, s, mask)

    def trained(velocity: Callable[[], Tensor]) -> Work:
        def work() -> Tensor:
            model.zero_grad(set_to_none=True)
            out = velocity()
            (out - noise).square().mean().backward()
            return out.detach()

        return work

    def drawn(texts: Tensor) -> tuple[Work, Work]:
        @torch.no_grad()
        def ours() -> Tensor:
            field = velocity_field(model, Text(texts), null=Text(null[None]), scale=GUIDANCE)
            return euler(field, x, options.steps)

        return lambda: sample(model, x, texts, null, options.steps, GUIDANCE), ours

    return {
        "forward and backward, one time per sample": (
            trained(lambda: forward(model, x, t[:, None], features)),
            trained(lambda: model(x, Times.per_sample(t), Text(features)).velocity),
        ),
        "forward and backward, two times per sample": (
            trained(lambda: forward(model, x, dual.per_token_levels(), features)),
            trained(lambda: model(x, dual, Text(features)).velocity),
        ),
        "guided samples, a prompt for each": drawn(features),
        "guided samples, one prompt for all": drawn(features[:1].expand(size, -1, -1)),
    }


def counted(work: Work) -> int:
    """Return the FLOPs of a piece of work, with attention by products, which the counter knows on a CPU."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return counter.get_total_flops()


def compared(released: Work, ours: Work, rounds: int) -> dict[str, Any]:
    """Return ratios of seconds within rounds and of FLOPs, and the largest difference of the results."""
    device, seconds = torch.device("cpu"), ([], [])
    difference = (released() - ours()).abs().max().item()
    for _ in range(rounds):
        for work, own in zip((released, ours), seconds, strict=True):
            own.append(timed(work, device))
    flops = counted(released), counted(ours)
    return {
        "released / ours, seconds": spread([a / b for a, b in zip(*seconds, strict=True)])
        | {"fastest": round(min(seconds[0]) / min(seconds[1]), 3)},
        "released / ours, FLOPs": round(flops[0] / flops[1], 4),
        "FLOPs of ours": flops[1],
        "seconds of ours": round(min(seconds[1]), 4),
        "largest difference": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="micro", choices=[*SIZES, *TEXT_TO_IMAGE])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--length", type=int, default=77)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "text.json")
    options = parser.parse_args()
    prepare(options.threads)
    rows = {name: compared(*work, options.rounds) for name, work in pairs(options).items()}
    found = {
        "what": f"{options.batch} samples of MMDiT-{options.size}/2 with {options.tokens} image tokens and "
        f"{options.length} text tokens; samples in {options.steps} Euler steps with guidance {GUIDANCE}",
        "command": f"python -m benchmarks.text --size {options.size} --tokens {options.tokens} --length "
        f"{options.length} --batch {options.batch} --steps {options.steps} --rounds {options.rounds} "
        f"--threads {options.threads}",
        "rounds": options.rounds,
        **machine(torch.device("cpu")),
        **rows,
    }
    text = json.dumps(found, indent=1)
    print(text)
    options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
