"""The writer of a run directory, whose content harness/records/record.py describes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

# Any: events and starts are JSON objects.
from typing import Any

from harness.errors import UserError
from harness.files.files import no_link, sync_file, take_lock, write_atomic, write_fully
from harness.files.parse import parse_toml
from harness.records.evaluations import add_evaluation
from harness.records.events import Event, read_events
from harness.records.record import CLOCK, DONE, FAILED, LOCK, Record, asks_the_same, read_json, steps_of
from harness.records.record_chain import (
    CHAIN,
    EVENTS,
    SPEC,
    ChainWriter,
    check_events,
    check_spec,
    digest_of,
    read_links,
    spec_digest,
)


@dataclass
class RecordWriter:
    """The only writer of a run directory. As a context manager, it holds the directory's lock."""

    path: Path
    # Any: an open file and a lock, both None outside the context.
    _events: Any = field(default=None, repr=False)
    _lock: Any = field(default=None, repr=False)
    _chain: ChainWriter | None = field(default=None, repr=False)

    def __enter__(self) -> RecordWriter:
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            (self.path / "samples").mkdir(exist_ok=True)
            self._lock = take_lock(self.path / LOCK, f"run directory {self.path}")
            # A kill after the last checkpoint leaves it, and no later write replaces it.
            (self.path / f".{CLOCK}.tmp").unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"cannot write the run directory {self.path}: {error.strerror}") from error
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._events, self._chain):
            if file is not None:
                file.close()
        # Closing the file releases the lock.
        self._lock.close()

    def write_spec(self, toml: str, *, replace: bool = False) -> None:
        """Write the resolved spec if the directory has none.

        With `replace`, also write it if its evaluation or its number of steps differs; a run that shall go
        further is then no longer done.
        """
        file = self.path / SPEC
        if not file.exists():
            return self._write_chained_spec(toml.encode(), None)
        old, new = Record(self.path).spec, parse_toml(toml)
        if not replace or asks_the_same(old, new):
            return None
        check_spec(self.path)
        if steps_of(old) != steps_of(new):
            (self.path / DONE).unlink(missing_ok=True)
        return self._write_chained_spec(toml.encode(), file.read_bytes())

    def _write_chained_spec(self, toml: bytes, before: bytes | None) -> None:
        """Write a spec between two links of the chain; a record of an earlier version has none."""
        if before is not None and not (self.path / CHAIN).exists():
            return write_atomic(self.path / SPEC, toml)
        chain = self._chain = self._chain or ChainWriter(self.path)
        chain.announce_spec(spec_digest(toml), spec_digest(before or b""))
        write_atomic(self.path / SPEC, toml)
        return chain.confirm_spec()

    def begin(
        self,
        environment: Mapping[str, Any],
        *,
        after_step: int,
        keep: Callable[[Event], bool] = lambda _: True,
    ) -> None:
        """Open the record to continue after a step; later events and a torn line are removed.

        So are events that `keep` rejects, of which evaluations become later evaluations. Raises `UserError`
        if spec or events do not fit the record's chain.
        """
        file = self.path / EVENTS
        known = read_events(file)
        before = file.read_bytes() if file.exists() else b""
        check_spec(self.path)
        check_events(file, before, read_links(self.path), after_step)
        for name in (DONE, FAILED):
            (self.path / name).unlink(missing_ok=True)
        starts = read_json(self.path / "environment.json") or []
        kept = [event for event in known if event["step"] <= after_step]
        for event in kept:
            if event["kind"] == "eval" and not keep(event):
                known = Record(self.path).protocols
                add_evaluation(self.path, _later(event), known.get(event["protocol"], {}))
        content = b"".join(_dump(event) + b"\n" for event in kept if keep(event))
        self._chain = self._chain or ChainWriter(self.path)
        # Before the start that mentions a chain, so that a record of an earlier version never lacks its own.
        self._chain.begin(before, content, digest_of(self.path / SPEC))
        write_atomic(
            self.path / "environment.json",
            _dump(
                [*starts, {"run": self.path.name, **environment, "after_step": after_step, "chain": CHAIN}],
                indent=1,
            ),
        )
        write_atomic(file, content)
        self._events = open(file, "ab", buffering=0, opener=no_link)  # noqa: SIM115 (closed by __exit__)

    def append(self, *events: Mapping[str, Any]) -> None:
        """Append events as complete lines in one write; raises ValueError for a number that is not finite."""
        lines = b"".join(_dump(event) + b"\n" for event in events)
        write_fully(self._events, lines)
        if self._chain is not None and events:
            self._chain.add(lines, events[-1]["step"])

    def seal(self) -> None:
        """Append a link with the hash of all events so far to the record's chain."""
        if self._chain is not None:
            self._chain.seal()

    def sync(self) -> None:
        """Force the events to the disk, before a checkpoint that relies on them is written."""
        sync_file(self._events)

    def write_clock(self, step: int, seconds: Mapping[str, float]) -> None:
        """Write the seconds spent up to the newest checkpoint, which must not depend on the time itself."""
        write_atomic(self.path / CLOCK, _dump({"step": step, "seconds": seconds}))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Mark the run as done."""
        if self._chain is not None:
            self._chain.seal(end=True)
        write_atomic(self.path / DONE, _dump(summary, indent=1))

    def fail(self, reason: Mapping[str, Any]) -> None:
        """Mark the last attempt as failed."""
        write_atomic(self.path / FAILED, _dump(reason, indent=1))


def _later(event: Event) -> Event:
    """Return an evaluation during training as a line of later evaluations."""
    names = ("kind", "step", "images", "metrics", "protocol", "errors")
    return {name: event[name] for name in names if name in event}


def _dump(value: Any, indent: int | None = None) -> bytes:
    return json.dumps(
        value, indent=indent, allow_nan=False, separators=(",", ":") if indent is None else None
    ).encode()
