"""The checkpoint that a run continues from, if a newer one is damaged or missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from harness.records.record import Record

DAMAGED = ".damaged"
"""Ending that a damaged checkpoint gets, so that it is never read or counted as a checkpoint again."""


def set_aside(damaged: Sequence[Path], note: Callable[[str], None]) -> None:
    """Rename damaged checkpoints that were passed over, and note it."""
    for file in damaged:
        renamed = file.with_name(f"{file.name}{DAMAGED}")
        file.rename(renamed)
        note(f"{file} is damaged and was renamed to {renamed.name}; the run continues from the one before it")


def note_missing(record: Record, damaged: Sequence[Path], step: int, note: Callable[[str], None]) -> None:
    """Note that the newest checkpoint of a record is missing, if the run continues from an older `step`."""
    newest = max((event["step"] for event in record.of("checkpoint")), default=0)
    if newest > step and not damaged:
        note(f"the checkpoint of step {newest} is missing; the run continues from step {step}")
