"""Disk space of a run: its checkpoints, and the EMA weights that it keeps for later evaluations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.config.spec import RunSpec
from harness.records.checkpoint_files import NEWEST

if TYPE_CHECKING:
    from harness.costs.flops import Cost

BYTES = {"float32": 4, "bfloat16": 2}
FLOAT32 = 4
"""Bytes of a number in a checkpoint: a weight, one of the optimizer, and a weight of the EMA."""


def disk_bytes(spec: RunSpec, cost: Cost) -> int:
    """Return the bytes that a finished run keeps on the disk, without its record and its sample grids."""
    checkpoint = FLOAT32 * (cost.saved_numbers + cost.parameters)
    train = spec.train
    due = -(-train.steps // train.checkpoint_every)
    rule = train.keep_checkpoints
    kept = due if rule == "all" else min(due, NEWEST if rule == "evaluations" else rule)
    evaluations = -(-train.steps // spec.eval.every) if rule == "evaluations" else 0
    return kept * checkpoint + evaluations * BYTES[train.keep_precision] * cost.parameters
