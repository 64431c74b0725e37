"""Networks of metrics and encoders that are trained for a few steps only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from harness.config.spec import RunSpec

STEPS = (
    "metrics.extractors.local.STEPS",
    "metrics.domain.typography.STEPS",
    "metrics.domain.obedience.STEPS",
    "metrics.domain.clip_obedience.STEPS",
    "harness.encoders.local.MAX_STEPS",
)


@contextmanager
def quickly_trained(cache: Path) -> Iterator[None]:
    """Train networks for four steps, and keep them in a separate cache: for tests that compare runs, and
    do not judge samples."""
    cache.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWRACE_CACHE", str(cache))
        for name in STEPS:
            patch.setattr(name, 4)
        yield


def keep_local_network(spec: RunSpec) -> None:
    """Train the network of metrics on the data of a spec into the cache, where other processes find it."""
    from harness.data.open import open_dataset, split
    from harness.evaluation.extractors import open_extractor

    dataset = open_dataset(spec.data)
    open_extractor("local", {}, dataset, split(dataset, spec.data.held_out).train, torch.device("cpu"))
