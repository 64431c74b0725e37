"""The check that a batch divides into equal micro-batches without splitting a method's groups."""

from __future__ import annotations

from harness.config.spec import RunSpec
from harness.errors import UserError


def check_batch_split(spec: RunSpec, processes: int = 1) -> None:
    """Raise `UserError` if the micro-batches of a batch would be unequal, or would split a method's
    groups."""
    size, parts = spec.train.batch_size, processes * spec.train.accumulate
    if size % parts:
        raise UserError(
            f"train.batch_size = {size} cannot be divided into {parts} equal parts "
            "(processes x train.accumulate); choose a multiple"
        )
    group = min(spec.method.needs().group, size)
    if (size // parts) % group:
        raise UserError(
            f"method.group = {group} does not divide a micro-batch of {size // parts} samples "
            f"(train.batch_size {size} in {parts} part{'' if parts == 1 else 's'}); "
            "choose a divisor of it, or fewer parts"
        )
