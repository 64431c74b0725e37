"""Runs on videos with sound, whose samples may lack a part."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from harness.data.open import open_dataset, split
from harness.flow.batch import Batch, Draw
from harness.runtime.random_streams import Streams
from harness.train.state import Run, build_run
from tests.support.modal import modal


@cache
def opened(*words: str):
    spec = modal("joint", *words).data
    dataset = open_dataset(spec)
    return dataset, split(dataset, spec.held_out)


def built(*words: str) -> Run:
    """Return a run on joint data whose parameters are perturbed, so that every path of the network carries
    signal."""
    spec = modal("joint", *words)
    data = [word for word in words if word.startswith("data.") and "_weight" in word]
    with pytest.MonkeyPatch.context() as patch:
        # The FLOPs are not needed.
        patch.setattr("harness.train.state.count_once", lambda *_, **__: None)
        run = build_run(spec, *opened(*data), torch.device("cpu"))
    with torch.no_grad():
        for module in (run.model, run.ema, run.method):
            for name, parameter in module.named_parameters():
                parameter.add_(0.1 * Streams(1).normal(name, [0], parameter.shape)[0])
    return run


def fed(run: Run, count: int = 8) -> tuple[Batch, Draw]:
    batch = run.feed.batch(np.arange(count))
    return batch, run.method.draw(run.streams, batch)
