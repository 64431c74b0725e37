"""Additional evaluation replicates at the steps that decide a verdict: both ends of each target crossing.

They are later evaluations, and `Record.of` returns evaluations with the means over replicates.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from harness.records.evaluations import row_of
from harness.records.record import Record


@dataclass(frozen=True)
class Wanted:
    """A metric and its target, from a study or from the user."""

    metric: str
    target: float


def bracket_steps(record: Record, wanted: Wanted) -> list[int]:
    """Return the steps of neighbouring evaluations with the target between them, in rising order."""
    values = [
        (e["step"], row["mean"]) for e in record.of("eval") if (row := row_of(e, wanted.metric)) is not None
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
    """Evaluate kept weights of a run again, with replicates, and record each step as soon as it is measured.

    Steps that already have `replicates` of them are skipped. Raises `MissingWeights` for weights that were
    not kept, and `UserError` if a network or the data have changed since the record was written.
    """
    from harness.runtime.distributed import World, pick_device
    from harness.runtime.environment import prepare
    from harness.train.later_evaluations import measure
    from harness.train.progress import Silent
    from harness.train.start import threads_of_run
    from harness.train.trained_run import spec_of_run

    if not steps:
        return
    spec = spec_of_run(record.path, (f"eval.replicates={replicates}",))
    prepare(threads_of_run(spec, record, Silent()))
    world = World(0, 1, pick_device(spec.runtime.device))
    for found in measure(record.path, spec, steps, world, Silent()):
        yield found.step, {"protocol": found.result.protocol, "metrics": found.result.rows}
