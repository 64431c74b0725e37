"""Sampling for an evaluation: ours against a plain loop over REPA's sampler, interleaved in one process.

    python -m benchmarks.sampling [--size S] [--tokens 256] [--batch 16] [--steps 4] [--guidance 1.5]
        [--rounds 3]
    python -m benchmarks.sampling --run runs/<study>/<run id>

The second form computes the metrics of a run from samples in bfloat16 and in float32. Writes
benchmarks/results/sampling.json, or sampling-precision.json for a run.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.sides import Kind, Side, machine, problem, spread, timed
from harness.backbone.sit import SiT
from harness.backbone.sizes import SIZES
from harness.backbone.times import Times
from harness.config.evaluation_spec import EvalSpec
from harness.flow.sampling import Sampling, draw_pixels
from harness.runtime.environment import prepare

RESULTS = Path(__file__).parent / "results"


@torch.no_grad()
def released_loop(model: SiT, z: Tensor, y: Tensor, null: int, steps: int, guidance: float) -> Tensor:
    """Sample as `euler_maruyama_sampler` of REPA's samplers.py, with its float64 state.

    With guidance, both halves are computed at every step.
    """
    times = [*torch.linspace(1, 0.04, steps, dtype=torch.float64).tolist(), 0.0]
    x = z.to(torch.float64)
    for i, (t, t_next) in enumerate(itertools.pairwise(times)):
        both, labels = x, y
        if guidance > 1:
            both, labels = torch.cat([x, x]), torch.cat([y, torch.full_like(y, null)])
        level = torch.full((len(both),), t, dtype=torch.float32, device=z.device)
        velocity = model(both.float(), Times.per_sample(level), labels).velocity.to(torch.float64)
        score = -(both + (1 - t) * velocity) / t
        drift = velocity - t * score
        if guidance > 1:
            conditional, free = drift.chunk(2)
            drift = free + guidance * (conditional - free)
        x = x + (t_next - t) * drift
        if i < steps - 1:
            x = x + (2 * t * (t - t_next)) ** 0.5 * torch.randn_like(x)
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def speeds(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Measure images per second for one batch, and the ratio of the released loop's time to ours."""
    config, batch = problem(options.size, options.tokens, options.batch)
    spec = EvalSpec(
        sampler="euler_maruyama",
        sampler_steps=options.steps,
        guidance=options.guidance,
        batch_size=options.batch,
    )
    eager, compiled = (
        Side(Kind("flow", compiled=compiled), config, options.size, device).ema
        for compiled in (False, not options.eager)
    )
    y, z = batch.y.to(device), torch.randn(options.batch, *config.shape, device=device)

    def ours(model: SiT, precision: str) -> Callable[[], Tensor]:
        drawn = spec.model_copy(update={"precision": precision})
        sampling = Sampling(drawn, config.shape, config.classes, device)
        return lambda: draw_pixels(model, sampling, np.arange(options.batch), y)

    sides = {
        "released loop": lambda: released_loop(eager, z, y, config.classes, options.steps, options.guidance),
        "float32": ours(eager, "float32"),
        "bf16": ours(eager, "bfloat16"),
    }
    if not options.eager:
        sides |= {f"{p} compiled": ours(compiled, p) for p in ("float32", "bfloat16")}
    for work in sides.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, work in sides.items():
            seconds[name].append(timed(work, device))
    plain = seconds["released loop"]
    return {
        "what": f"{options.batch} samples of SiT-{options.size}/2 with {config.tokens} tokens "
        f"in {options.steps} SDE steps",
        "guidance": options.guidance,
        "rounds": options.rounds,
        **machine(device),
        "images_per_second": {name: round(options.batch / min(s), 3) for name, s in seconds.items()},
        "released loop / ours": {
            name: spread([a / b for a, b in zip(plain, s, strict=True)])
            | {"fastest": round(min(plain) / min(s), 3)}
            for name, s in seconds.items()
            if s is not plain
        },
    }


def difference(path: Path, samples: int, device: torch.device) -> dict[str, Any]:
    """Compute the metrics of a finished run from the same latents in both precisions."""
    from harness.assembly.build import sampling_rule
    from harness.data.open import open_dataset, split
    from harness.evaluation.evaluator import Evaluator
    from harness.records.checkpoint_files import checkpoints
    from harness.train.trained_run import load_ema, spec_of_run

    spec = spec_of_run(path, (f"eval.samples={samples}",))
    dataset = open_dataset(spec.data)
    sides = split(dataset, spec.data.held_out)
    file = checkpoints(path / "checkpoints")[-1]
    found = {}
    for precision in ("float32", "bfloat16"):
        model = load_ema(file, spec, dataset, device)
        drawn = spec.eval.model_copy(update={"precision": precision})
        rule = sampling_rule(spec, dataset)
        rows = Evaluator(drawn, dataset, sides.train, device, sides.held_out, rule=rule)(model).rows
        found[precision] = {name: row["mean"] for name, row in rows.items()}
    relative = {name: found["bfloat16"][name] / value - 1 for name, value in found["float32"].items()}
    return {
        "run": path.name,
        "samples": samples,
        **machine(device),
        **found,
        "relative difference": {name: round(value, 6) for name, value in relative.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="S", choices=list(SIZES))
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--eager", action="store_true", help="leave out the compiled variants")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--samples", type=int, default=1000, help="number of samples for --run")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    prepare(0)
    device = torch.device("cpu")
    if options.run is None:
        found, name = speeds(options, device), "sampling.json"
    else:
        found, name = difference(options.run, options.samples, device), "sampling-precision.json"
    text = json.dumps(found, indent=1)
    print(text)
    (options.out or RESULTS / name).write_text(text + "\n")


if __name__ == "__main__":
    main()
