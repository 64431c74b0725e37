"""The start of a run: what must equal its first start, and what the record stores about this one."""

from __future__ import annotations

from typing import Any

from harness.config.spec import RunSpec
from harness.data.dataset import Dataset
from harness.data.open import Split
from harness.encoders.base import described
from harness.errors import UserError
from harness.evaluation.evaluator import Evaluator
from harness.records.record import Record
from harness.runtime.distributed import World
from harness.runtime.environment import describe
from harness.train.journal import Progress
from harness.train.state import Run


def threads_of_run(spec: RunSpec, record: Record, progress: Progress) -> int:
    """Return the thread count of a run's first start, on which its bits depend; for a new run, that of the
    spec."""
    begun = next((start["threads"] for start in record.environment), None)
    if begun is not None and spec.runtime.threads not in (0, begun):
        progress.note(
            f"the run started with {begun} threads and keeps them, so that its results stay bitwise equal"
        )
    return begun or spec.runtime.threads


def check_same_data(record: Record, fingerprint: str) -> None:
    """Raise `UserError` if a run started with other data."""
    begun = next((start["data_fingerprint"] for start in record.environment), fingerprint)
    if begun != fingerprint:
        raise UserError(
            f"the data have changed since {record.path} started (fingerprint {begun}, now {fingerprint}); "
            "restore the original data, or use another --out"
        )


def describe_start(
    run: Run, world: World, dataset: Dataset, sides: Split, evaluator: Evaluator
) -> dict[str, Any]:
    """Return the entry of this start in environment.json."""
    about: dict[str, Any] = {
        "data_fingerprint": dataset.fingerprint,
        "train_samples": len(sides.train),
        "params": sum(parameter.numel() for parameter in run.model.parameters()),
        "evaluation": evaluator.described(run.encoders),
    }
    if run.encoders:
        about["encoders"] = [described(encoder) for encoder in run.encoders]
    return describe(world.device, world.size) | about
