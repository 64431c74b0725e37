"""The gain of each optimisation of the step: training steps with and without it, interleaved.

    python -m benchmarks.before_after [--size S] [--tokens 256] [--batch 8] [--rounds 5] [--only NAME ...]

Every contestant runs in a separate process, because some optimisations are settings of a process. Only one
works at a time. Writes benchmarks/results/before_after.json: the ratio of times without and with each
optimisation, in wall seconds and in CPU seconds, which are less sensitive to other load on the machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.sides import Kind, Side, machine, problem, spread
from harness.backbone import layers, sit
from harness.backbone.embed import PatchEmbed
from harness.backbone.times import Times
from harness.runtime import environment
from harness.runtime.random_streams import Streams


@dataclass(frozen=True)
class Optimisation:
    """An optimisation and how to switch it off."""

    what: str
    kind: Kind
    undo: Callable[[], None] = lambda: None
    """Called before anything else in the process."""
    undo_side: Callable[[Side], None] = lambda side: None


def _release_memory() -> None:
    environment.keep_memory = lambda: None


def _unfused(side: Side) -> None:
    side.optimizer = torch.optim.AdamW(side.learned, 1e-4, fused=False, foreach=False)


def _ema_one_by_one(side: Side) -> None:
    from benchmarks.released import ema_step

    side.update = ema_step


def _full_teacher(side: Side) -> None:
    forward = side.ema.forward
    side.ema.forward = lambda *args, stop_after=None, **kwargs: forward(*args, **kwargs)


def _strided_tokens() -> None:
    PatchEmbed._tokens = lambda self, planes: self.proj(planes).flatten(2).transpose(1, 2)


def _tensor_per_level() -> None:
    def select(times: Times, values: Tensor) -> Tensor:
        chosen = values[:, :1]
        for level in range(1, values.shape[1]):
            chosen = torch.where((times.which == level)[:, :, None], values[:, level : level + 1], chosen)
        return chosen

    chosen = Times.select
    Times.select = lambda times, values: (chosen if times.which is None else select)(times, values)


def _fused_attention() -> None:
    sit.Attention.fused = True


def _tanh() -> None:
    layers.gelu = lambda x: F.gelu(x, approximate="tanh")


HALF, FAST = {"precision": "bfloat16"}, {"precision": "bfloat16", "compiled": True}
OPTIMISATIONS = {
    "teacher": Optimisation(
        "the teacher stops after the requested layer", Kind("self_flow"), undo_side=_full_teacher
    ),
    "memory": Optimisation("freed memory is kept", Kind("self_flow"), _release_memory),
    "levels": Optimisation(
        "the gradient of a level is a product", Kind("self_flow", **HALF), _tensor_per_level
    ),
    "tokens": Optimisation("tokens are contiguous in memory", Kind("flow", **FAST), _strided_tokens),
    "attention": Optimisation("attention is written out", Kind("flow", **HALF), _fused_attention),
    "gelu": Optimisation("GELU by an exponential", Kind("flow", **FAST), _tanh),
    "optimizer": Optimisation("AdamW is fused", Kind("flow", **FAST), undo_side=_unfused),
    "ema": Optimisation(
        "the EMA updates all parameters at once", Kind("flow", **FAST), undo_side=_ema_one_by_one
    ),
}
"""Each is measured on the contestant for which it matters most."""


def _work(pipe: Any, name: str, without: bool, size: str, tokens: int, batch_size: int) -> None:
    """Run a contestant: take a step for every True received, and send its wall and CPU seconds."""
    chosen = OPTIMISATIONS[name]
    if without:
        chosen.undo()
    environment.prepare(0)
    config, batch = problem(size, tokens, batch_size)
    side = Side(chosen.kind, config, size, torch.device("cpu"))
    if without:
        chosen.undo_side(side)
    draw = side.method.draw(Streams(0), batch)
    for _ in range(2):
        loss = float(side.step(batch, draw))
    pipe.send(loss)
    while pipe.recv():
        clock, processor = time.perf_counter(), time.process_time()
        side.step(batch, draw)
        pipe.send((time.perf_counter() - clock, time.process_time() - processor))


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the ratios of times without and with an optimisation, round by round."""
    context = multiprocessing.get_context("spawn")
    sides = []
    for without in (False, True):
        pipe, other_end = context.Pipe()
        args = (other_end, name, without, options.size, options.tokens, options.batch)
        process = context.Process(target=_work, args=args, daemon=True)
        process.start()
        sides.append((pipe, process, pipe.recv()))
    rounds = []
    for _ in range(options.rounds):
        taken = []
        for pipe, _, _ in sides:
            pipe.send(True)
            taken.append(pipe.recv())
        rounds.append(taken)
    for pipe, process, _ in sides:
        pipe.send(False)
        process.join()
    return {
        "what": OPTIMISATIONS[name].what,
        "side": str(OPTIMISATIONS[name].kind),
        "loss with and without": [loss for _, _, loss in sides],
        "without / with": spread([after[0] / before[0] for before, after in rounds]),
        "without / with, processor": spread([after[1] / before[1] for before, after in rounds]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="S")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(OPTIMISATIONS), default=list(OPTIMISATIONS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "before_after.json")
    options = parser.parse_args()
    found = {}
    for name in options.only:
        found[name] = measured(name, options)
        ratio, cpu = found[name]["without / with"], found[name]["without / with, processor"]
        print(
            f"{OPTIMISATIONS[name].what:52} {ratio['median']:.3f}  (processor {cpu['median']:.3f})",
            flush=True,
        )
    scale = {key: getattr(options, key) for key in ("size", "tokens", "batch", "rounds")}
    options.out.write_text(
        json.dumps({**machine(torch.device("cpu")), **scale, "optimisations": found}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
