"""The cost of an evaluation by phase, and whether features pay to be computed while the next batch is drawn.

    python -m benchmarks.evaluation [SPEC] [--samples 10000] [--rounds 3] [--set NAME=VALUE ...]

SPEC is a preset, a spec file or the folder of a run whose network is conditioned on labels; default `digits`.
The network has initial weights, because they do not change the cost. Phases are those of one evaluation on
one thread, after the networks and the real samples were prepared:

    noise       latents of the samples, and the sampler's noise
    network     the sampler's passes of the network
    decoding    latents to pixels; nothing for a data set in pixels
    features    passes of the networks of the metrics
    collection  moments and rows of features
    distances   metrics of the collected features
    rest        pixels, labels and the bookkeeping

`ways` compares, interleaved: one thread; one thread with another that computes features; and two threads for
every operation, one after the other, as a run with `runtime.threads=2` does. On CUDA features overlap with
the next batch without threads (benchmarks/gpu_parts.py). Writes benchmarks/results/evaluation.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.sides import machine, timed
from harness.assembly.build import backbone_config, build_backbone, sampling_rule
from harness.assembly.resolve import load_spec
from harness.config.spec import RunSpec
from harness.costs.meter import Meter, clock
from harness.data.open import open_dataset, split
from harness.evaluation import evaluator as evaluators
from harness.evaluation import features, generated_side
from harness.evaluation.evaluator import Evaluator
from harness.evaluation.features import FeaturePass, FeatureSet, Masked
from harness.runtime.distributed import World
from harness.runtime.environment import prepare
from harness.runtime.random_streams import Streams
from harness.runtime.rounds import Round

RESULTS = Path(__file__).parent / "results" / "evaluation.json"
# Any: a module or a class.
PHASES: dict[str, tuple[Any, str]] = {
    "noise": (Streams, "normal"),
    "network": (generated_side, "draw"),
    "features": (features, "outputs_of"),
    "collection": (FeatureSet, "add"),
    "distances": (evaluators, "_compute"),
}
"""The function whose calls a phase books; a nested phase is not booked on it."""
DECODING, REST = "decoding", "rest"
WAYS = {
    "one thread": (1, False),
    "one thread, features in another": (1, True),
    "two threads": (2, False),
}
"""Threads of an operation, and whether features have another thread."""
CPU = torch.device("cpu")


class InThread:
    """A feature pass in a separate thread, at most one batch later than the samples."""

    # Any: an extractor; see `FeaturePass`.
    def __init__(self, extract: Any, sets: Sequence[Masked], world: World) -> None:
        self.inside = FeaturePass(extract, sets, world)
        self.sets = self.inside.sets
        self._pool = ThreadPoolExecutor(1)
        self._begun: Future[None] | None = None

    @property
    def error(self) -> Exception | None:
        return self.inside.error

    def add(self, inputs: Any, labels: Tensor, turn: Round) -> None:
        self._wait()
        self._begun = self._pool.submit(self.inside.add, inputs, labels, turn)

    def finish(self) -> None:
        self._wait()
        self._pool.shutdown()
        self.inside.finish()

    def _wait(self) -> None:
        if self._begun is not None:
            self._begun.result()


def opened(spec: RunSpec) -> tuple[Evaluator, nn.Module]:
    """Return the evaluator of a spec, with its real side, and a network with initial weights."""
    dataset = open_dataset(spec.data)
    sides = split(dataset, spec.data.held_out)
    model = build_backbone(backbone_config(spec, dataset), spec.runtime).eval()
    rule = sampling_rule(spec, dataset)
    return Evaluator(spec.eval, dataset, sides.train, CPU, sides.held_out, rule=rule), model


def by_phase(evaluator: Evaluator, model: nn.Module) -> dict[str, float]:
    """Return the seconds of one evaluation by phase."""
    meter, generated = clock(CPU), evaluator.generated
    with ExitStack() as stack:
        for phase, (owner, name) in PHASES.items():
            work = booked(meter, phase, getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, work))
        if generated.decode is not None:
            evaluator.generated = replace(generated, decode=booked(meter, DECODING, generated.decode))
        with meter.phase(REST):
            evaluator(model)
    evaluator.generated = generated
    return dict.fromkeys((*PHASES, DECODING, REST), 0.0) | meter.settle()


# Any: the arguments of a function.
def booked(meter: Meter, phase: str, work: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose calls are booked on a phase."""

    @wraps(work)
    def inside(*given: Any, **named: Any) -> Any:
        with meter.phase(phase):
            return work(*given, **named)

    return inside


def evaluated(evaluator: Evaluator, model: nn.Module, way: str) -> tuple[float, dict[str, float]]:
    """Return the seconds of one evaluation, and its values by metric."""
    threads, separate = WAYS[way]
    torch.set_num_threads(threads)
    found: list[Any] = []
    with mock.patch.object(evaluators, "FeaturePass", InThread) if separate else nullcontext():
        seconds = timed(lambda: found.append(evaluator(model)), CPU)
    torch.set_num_threads(1)
    return seconds, {name: row["mean"] for name, row in found[0].rows.items()}


def measured(spec: RunSpec, rounds: int) -> dict[str, Any]:
    """Return phases and ways of an evaluation, from interleaved repetitions."""
    evaluator, model = opened(spec)
    # The first pass allocates.
    by_phase(evaluator, model)
    phases: list[dict[str, float]] = []
    ways: dict[str, list[float]] = {way: [] for way in WAYS}
    values: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        phases.append(by_phase(evaluator, model))
        for way, seconds in ways.items():
            spent, values[way] = evaluated(evaluator, model, way)
            seconds.append(spent)
    # That with the median total, so that shares add up to 1.
    chosen = sorted(phases, key=lambda found: sum(found.values()))[len(phases) // 2]
    total = sum(chosen.values())
    medians = {way: statistics.median(seconds) for way, seconds in ways.items()}
    first, separate, _ = WAYS
    return {
        "what": described(spec),
        "rounds": rounds,
        **machine(CPU),
        "seconds": round(total, 3),
        "seconds by phase": {phase: round(seconds, 3) for phase, seconds in chosen.items()},
        "share by phase": {phase: round(seconds / total, 4) for phase, seconds in chosen.items()},
        "ways": {way: round(seconds, 3) for way, seconds in medians.items()},
        "time of one thread over": {
            way: round(medians[first] / seconds, 3) for way, seconds in medians.items() if way != first
        },
        "equal values with features in another thread": values[separate] == values[first],
    }


def described(spec: RunSpec) -> str:
    own = spec.eval
    return (
        f"{own.samples} samples of {spec.data.name}, {', '.join(own.metrics)}: {spec.backbone.kind} "
        f"{spec.backbone.size}/{spec.backbone.patch}, {own.sampler}, {own.sampler_steps} steps, guidance "
        f"{own.scale:g}, {own.batch_size} a batch, {own.precision}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("spec", nargs="?", default="digits")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a field of the spec"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    prepare(1)
    spec = load_spec(options.spec, (f"eval.samples={options.samples}", *options.set))
    text = json.dumps(measured(spec, options.rounds), indent=1)
    print(text)
    options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
