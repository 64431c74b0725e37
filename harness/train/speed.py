"""The training speed of this machine, measured over a few steps."""

from __future__ import annotations

import statistics
import tempfile
from itertools import pairwise
from pathlib import Path

from harness.config.spec import RunSpec
from harness.records.record import TRAINING_PHASES, Record


def measured_flops_per_second(spec: RunSpec, steps: int) -> float:
    """Return the FLOP/s of training on this machine, by training the run for a few steps in a temporary
    folder."""
    from harness.train.loop import train
    from harness.train.progress import Silent

    fewer = {"steps": steps + 1, "log_every": 1, "checkpoint_every": steps + 1}
    least = {"metrics": ("fd:local",), "samples": 2, "sampler_steps": 2, "every": steps + 1, "replicates": 1}
    short = spec.model_copy(
        update={
            "train": spec.train.model_copy(update=fewer),
            "eval": spec.eval.model_copy(update=least),
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        events = Record(train(short, Path(folder), Silent())).of("train")
    seconds = [sum(event["seconds"].get(phase, 0.0) for phase in TRAINING_PHASES) for event in events]
    flops = [event["flops"] for event in events]
    paces = [(g - f) / (t - s) for (s, t), (f, g) in zip(pairwise(seconds), pairwise(flops), strict=True)]
    return statistics.median(paces[1:] or paces)
