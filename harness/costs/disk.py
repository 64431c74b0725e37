"""Disk space of a run: its checkpoints, and the EMA weights that it keeps for later evaluations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.config.spec import RunSpec
from harness.records.checkpoint_files import NEWEST

if TYPE_CHECKING:
    from harness.costs.flops import Cost

BYTES = {"float32": 4, "bfloat16": 2}
PER_LEARNED_PARAMETER, PER_EMA_PARAMETER = 12, 4
"""Bytes in a checkpoint: a weight and the two moments of AdamW, and a weight of the EMA, in float32."""


def disk_bytes(spec: RunSpec, cost: Cost) -> int:
    """Return the bytes that a finished run keeps on the disk, without its record and its sample grids."""
    from harness.costs.flops import OPTIMIZER_FLOPS

    learned = cost.per_step.get("optimizer", 0) // OPTIMIZER_FLOPS
    checkpoint = PER_LEARNED_PARAMETER * learned + PER_EMA_PARAMETER * cost.parameters
    train = spec.train
    due = -(-train.steps // train.checkpoint_every)
    rule = train.keep_checkpoints
    kept = due if rule == "all" else min(due, NEWEST if rule == "evaluations" else rule)
    evaluations = -(-train.steps // spec.eval.every) if rule == "evaluations" else 0
    return kept * checkpoint + evaluations * BYTES[train.keep_precision] * cost.parameters
