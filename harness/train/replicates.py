"""More evaluation replicates where a verdict depends on them: at both ends of every bracket around the
target.

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
    """The metric and target of a study, or of the user."""

    metric: str
    target: float


def bracket_steps(record: Record, wanted: Wanted) -> list[int]:
    """Return the steps of neighbouring evaluations with the target between them, for all crossings, in rising
    order."""
    seen = [
        (e["step"], e["metrics"][wanted.metric]["mean"])
        for e in record.of("eval")
        if wanted.metric in e["metrics"]
    ]
    pairs = itertools.pairwise(seen)
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
    """Evaluate checkpoints of a run again, with replicates; each step is written as soon as it is measured.

    A step that already has that many is skipped. Raises `UserError` if a checkpoint was pruned, or if the
    evaluation protocol has changed since the record was written.
    """
    from harness.data.open import open_dataset, split
    from harness.evaluation.evaluator import Evaluator
    from harness.runtime.distributed import pick_device
    from harness.runtime.environment import prepare
    from harness.train.trained_run import checkpoint_of_run, load_ema, spec_of_run

    kept = record.replicates
    left = [step for step in steps if _count(kept.get(str(step))) < replicates]
    if not left:
        return
    files = [(step, _checkpoint(record, step, checkpoint_of_run)) for step in left]
    spec = spec_of_run(record.path, (f"eval.replicates={replicates}",))
    prepare(spec.runtime.threads)
    dataset, device = open_dataset(spec.data), pick_device(spec.runtime.device)
    sides = split(dataset, spec.data.held_out)
    evaluator = Evaluator(spec.eval, dataset, sides.train, device)
    known = {event["step"]: event["protocol"] for event in record.of("eval")}
    for step, file in files:
        if known.get(step) != evaluator.protocol:
            raise UserError(
                f"{record.path} was evaluated under protocol {known.get(step)}, which is {evaluator.protocol} today; its numbers "
                "cannot be averaged with new ones"
            )
        result = evaluator(load_ema(file, spec, dataset, device))
        # Only ranks other than 0 get none, and this command runs in one process.
        assert result is not None
        found = {"protocol": result.protocol, "metrics": result.rows}
        with adding_to(record.path / REPLICATES):
            write_table(record.path / REPLICATES, {**Record(record.path).replicates, str(step): found})
        yield step, found


class MissingCheckpoint(UserError):
    """A checkpoint that was pruned."""


def _checkpoint(record: Record, step: int, find: Callable[[Path, int], Path]) -> Path:
    try:
        return find(record.path, step)
    except UserError as error:
        raise MissingCheckpoint(
            f"{error}; keep them with train.checkpoint_every = eval.every and a larger train.keep_checkpoints"
        ) from error


def _count(kept: dict[str, Any] | None) -> int:
    return (
        min((len(row.get("replicates", [0])) for row in kept["metrics"].values()), default=0) if kept else 0
    )
