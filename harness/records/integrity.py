"""Comparison of a run directory's events, spec and checkpoint with its chain and its starts. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from harness.errors import UserError
from harness.files.files import content_of
from harness.records.checkpoint_files import CHECKPOINTS, EMA, checkpoints, read_header
from harness.records.in_threads import in_threads
from harness.records.record import DONE, EVENTS, Record
from harness.records.record_chain import CHAIN, SPEC, digest_of, events_fault, read_links, spec_fits

TRIES = 3
"""Readings of a record that changes meanwhile."""


def misfits(record: Record) -> tuple[str, ...]:
    """Return in one sentence each what does not fit in a record; empty if all fits.

    Records of versions without chains, and curves of other tools, have nothing to compare.
    """
    try:
        for _ in range(TRIES if record.path.is_dir() else 0):
            before = content_of(record.path / CHAIN)
            found = tuple(_misfits(record))
            # The run may have been resumed between two readings.
            if not found or content_of(record.path / CHAIN) == before:
                return found
    except UserError as error:
        return (str(error),)
    return ()


def named_misfits(records: Iterable[Record]) -> list[str]:
    """Return a sentence for each record that does not fit, which begins with its run id."""
    found = in_threads(lambda record: (record.id, misfits(record)), records)
    return [f"run {run}: {'; '.join(faults)}" for run, faults in found if faults]


def check_owner(file: Path) -> None:
    """Raise `UserError` if weights in a run directory belong to another run."""
    if fault := _foreign(Record(file.parent.parent), [file]):
        raise UserError(f"{file.parent.parent}: {fault}; restore its own weights")


def _misfits(record: Record) -> Iterator[str]:
    run = record.path
    try:
        done, content = (run / DONE).exists(), content_of(run / EVENTS)
        links = read_links(run)
        if not links and any("chain" in start for start in record.environment):
            yield f"its {CHAIN} is missing, so that nothing shows whether it is complete"
        if fault := events_fault(content, links, done=done):
            yield f"its {EVENTS} does not fit its chain: {fault}"
        if (digest := digest_of(run / SPEC)) and not spec_fits(digest, links):
            yield f"its {SPEC} was altered after the run wrote it"
        newest = (checkpoints(run / name)[-1:] for name in (CHECKPOINTS, EMA))
        if fault := _foreign(record, [file for files in newest for file in files]):
            yield fault
    except (OSError, UserError) as error:
        yield str(error)


def _foreign(record: Record, files: Sequence[Path]) -> str:
    """Return which of these weights belong to another run. Starts of version 0.1 do not name their run."""
    names = [start["run"] for start in record.environment if "run" in start]
    for file in files if names else ():
        try:
            owner = read_header(file).get("run")
        except UserError:
            # A run in progress deletes old checkpoints.
            if file.exists():
                raise
            continue
        if owner is not None and owner not in names:
            return f"its {file.parent.name}/{file.name} belongs to run {owner}"
    return ""
