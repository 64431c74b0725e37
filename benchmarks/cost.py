"""`flowrace cost --measure` against an actual run: predicted and recorded seconds of training.

    python -m benchmarks.cost [--set A.B=VALUE ...] [--rounds 3]

Every round measures ten steps for the prediction, then times a complete run of 100 steps. Writes
benchmarks/results/cost.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from harness.assembly.resolve import load_spec
from harness.records.record import TRAINING_PHASES, Record
from harness.runtime.environment import prepare
from harness.train.loop import train
from harness.train.progress import Quiet
from harness.train.speed import measured_flops_per_second

STEPS = 100
SHORT = (f"train.steps={STEPS}", f"eval.every={STEPS}", "eval.samples=20", "eval.sampler_steps=2")


def main() -> None:
    options = _options()
    prepare(1)
    rows = {}
    for method in ("flow", "self_flow"):
        rounds = [_round(method, options.overrides) for _ in range(options.rounds)]
        ratio = statistics.median(predicted / booked for predicted, booked in rounds)
        rows[method] = {"predicted_over_booked": ratio, "rounds": [list(pair) for pair in rounds]}
        print(f"{method}: predicted / booked = {ratio:.3f} (median of {options.rounds})")
    what = f"seconds of training in {STEPS - 1} steps, predicted from 10 measured ones and booked by the run"
    result = {"what": what, "settings": options.overrides, "torch": torch.__version__, "methods": rows}
    options.out.write_text(json.dumps(result, indent=1) + "\n")


def _round(method: str, overrides: list[str]) -> tuple[float, float]:
    """Return the predicted and the recorded seconds of training after the first step."""
    spec = load_spec("digits", (*SHORT, *overrides, f"method.name={method}"))
    speed = measured_flops_per_second(spec, 10)
    with tempfile.TemporaryDirectory() as folder:
        events = Record(train(spec, Path(folder), Quiet())).of("train")
    first, last = events[0], events[-1]
    return (last["flops"] - first["flops"]) / speed, _training(last) - _training(first)


def _training(event: dict[str, Any]) -> float:
    return sum(event["seconds"].get(phase, 0.0) for phase in TRAINING_PHASES)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=VALUE")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cost.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
