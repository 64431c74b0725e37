"""Additional evaluation replicates at the steps that decide a verdict: both ends of each target crossing.

A run's events stay as they are. The new measurements are stored in its `replicates.json`, and `Record.of`
returns evaluations with the means over replicates.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files.json_table import adding_to, write_table
from harness.records.record import REPLICATES, Record


@dataclass(frozen=True)
class Wanted:
    """A metric and its target, from a study or from the user."""

    metric: str
    target: float


def bracket_steps(record: Record, wanted: Wanted) -> list[int]:
    """Return the steps of neighbouring evaluations with the target between them, in rising order."""
    values = [
        (e["step"], e["metrics"][wanted.metric]["mean"])
        for e in record.of("eval")
        if wanted.metric in e["metrics"]
    ]
    pairs = itertools.pairwise(values)
    return sorted(
        {
            step
            for before, after in pairs
            if (before[1] > wanted.target) != (after[1] > wanted.target)
            for step in (before[0], after[0])
        }
    )


def replicate_run(
    record: Record, steps: Sequence[int], replicates: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Evaluate checkpoints of a run again, with replicates, and write each step as soon as it is measured.

    Steps that already have `replicates` of them are skipped. Raises `UserError` if a checkpoint was pruned,
    or if the evaluation protocol has changed since the record was written.
    """
    from harness.data.open import open_dataset, split
    from harness.evaluation.evaluator import Evaluator
    from harness.runtime.distributed import pick_device
    from harness.runtime.environment import prepare
    from harness.train.trained_run import checkpoint_of_run, load_ema, spec_of_run

    measured = record.replicates
    missing = [step for step in steps if _count(measured.get(str(step))) < replicates]
    if not missing:
        return
    files = [(step, _checkpoint(record, step, checkpoint_of_run)) for step in missing]
    spec = spec_of_run(record.path, (f"eval.replicates={replicates}",))
    prepare(spec.runtime.threads)
    dataset, device = open_dataset(spec.data), pick_device(spec.runtime.device)
    sides = split(dataset, spec.data.held_out)
    evaluator = Evaluator(spec.eval, dataset, sides.train, device)
    protocols = {event["step"]: event["protocol"] for event in record.of("eval")}
    for step, file in files:
        if protocols.get(step) != evaluator.protocol:
            raise UserError(
                f"{record.path} was evaluated under protocol {protocols.get(step)}, but the protocol is now "
                f"{evaluator.protocol}; old and new values cannot be averaged"
            )
        result = evaluator(load_ema(file, spec, dataset, device))
        # The result is None only on ranks other than 0, and this command runs in one process.
        assert result is not None
        row = {"protocol": result.protocol, "metrics": result.rows}
        with adding_to(record.path / REPLICATES):
            write_table(record.path / REPLICATES, {**Record(record.path).replicates, str(step): row})
        yield step, row


class MissingCheckpoint(UserError):
    """A checkpoint does not exist, usually because it was pruned."""


def _checkpoint(record: Record, step: int, find: Callable[[Path, int], Path]) -> Path:
    try:
        return find(record.path, step)
    except UserError as error:
        raise MissingCheckpoint(
            f"{error}; to keep them, set train.checkpoint_every = eval.every and a larger "
            "train.keep_checkpoints"
        ) from error


def _count(measured: dict[str, Any] | None) -> int:
    if measured is None:
        return 0
    return min((len(row.get("replicates", [0])) for row in measured["metrics"].values()), default=0)
