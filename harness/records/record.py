"""The run directory: written here by one process, read everywhere. No torch.

    runs/<study>/<run id>/
        spec.toml           the resolved spec, written before anything runs
        environment.json    versions, device, threads: one entry for each time the run was started
        events.jsonl        one JSON object a line, in order of step; never a torn or doubled line
        checkpoints/        step-00000400.safetensors; the same bytes whenever the same step is reached
        clock.json          seconds by phase at the newest checkpoint
        samples/            step-00000400.png
        done                JSON, written once the last step has finished
        failed              JSON with the reason, present if the last attempt failed
        lock                held by the running process; names it

An event has `kind`, `step` and `images`. Kinds:
    train       loss, losses (named parts), grad_norm, learning_rate, flops, seconds {phase: s}
    eval        metrics {name: {mean, low, high, n}, and replicates where there are several}, errors {name:
    reason} where one
                failed, protocol (hash; the start's `evaluation` in environment.json has it whole, and the
                floors), seconds, flops
    checkpoint  file
`flops` and `seconds` are totals since step 0 of this run, so that an event says what it cost to get there.
All fields but `seconds` are equal bit for bit between an unbroken run and one that was killed and continued.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.errors import ERROR_PREFIX, UserError
from harness.files.files import holder, read_tail, sync_file, take_lock, write_atomic
from harness.records.events import read_events, read_finished

EVENTS, SPEC, CLOCK = "events.jsonl", "spec.toml", "clock.json"
REPLICATES = "replicates.json"
DONE, FAILED, LOCK = "done", "failed", "lock"
TRAINING_PHASES = ("data", "student", "teacher", "encoder", "optimizer", "ema")
"""The phases that time to target counts; eval, checkpoint, tracking and warmup are booked but do not
count."""


def tracked_name(name: str) -> str:
    """A name of a record in a store, as MLflow takes it: characters but word ones and `.- :/` become
    underscores.

    >>> tracked_name("fd:torchscript@d7826800?size=8")
    'fd:torchscript_d7826800_size_8'
    """
    return re.sub(r"[^\w.\- :/]", "_", name)


@dataclass(frozen=True)
class Record:
    """A run directory, read. Cheap to make: files are read when a field is first asked for."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The resolved spec as plain data; raises `UserError` when it is missing or broken."""
        file = self.path / SPEC
        try:
            return tomllib.loads(file.read_text())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(f"{self.path} is not a run directory: no {SPEC} in it") from error
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{file} is not TOML: {error}") from error

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """All complete events in order; of a run at work a last line without an end is being written and is
        left out.

        Raises `UserError` for a run that is done and whose file lacks its end.
        """
        file = self.path / EVENTS
        if not (self.path / DONE).exists():  # asked first: a run may end while it is read
            return read_events(file)
        train = self.spec.get("train")
        return read_finished(file, train.get("steps") if isinstance(train, dict) else None)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The events of a kind in order; an evaluation that was replicated later has the means over
        replicates."""
        found = [event for event in self.events if event["kind"] == kind]
        return [self._replicated(event) for event in found] if kind == "eval" and self.replicates else found

    @cached_property
    def replicates(self) -> dict[str, Any]:
        """What `flowrace replicate` has measured since: step -> protocol and metrics."""
        return _read_json(self.path / REPLICATES) or {}

    def _replicated(self, event: dict[str, Any]) -> dict[str, Any]:
        later = self.replicates.get(str(event["step"]))
        if later is None or later["protocol"] != event["protocol"]:
            return event
        return event | {"metrics": event["metrics"] | later["metrics"]}

    @cached_property
    def environment(self) -> list[dict[str, Any]]:
        """One entry for each start of the run, oldest first; empty when none was written."""
        return _read_json(self.path / "environment.json") or []

    @cached_property
    def failure(self) -> dict[str, Any] | None:
        return _read_json(self.path / FAILED)

    @property
    def status(self) -> str:
        """`missing`, `done`, `running`, `failed` or `stopped` (begun, not finished, nobody at work)."""
        if not (self.path / SPEC).exists():
            return "missing"
        if (self.path / DONE).exists():
            return "done"
        if lock_holder(self.path) is not None:
            return "running"
        return "failed" if (self.path / FAILED).exists() else "stopped"

    def seconds_at(self, step: int) -> dict[str, float]:
        """Seconds by phase that a run had spent when it saved a step; those of its last event before, when it
        died there."""
        clock = _read_json(self.path / CLOCK)
        if clock is not None and clock["step"] == step:
            return clock["seconds"]
        return next((e["seconds"] for e in reversed(self.events) if e["step"] <= step and "seconds" in e), {})

    @property
    def last_step(self) -> int:
        """The step of the last event; 0 before the first."""
        return self.events[-1]["step"] if self.events else 0


def log_file(run: Path) -> Path:
    """Return the file in the study's folder that receives the output of a run which a launcher started."""
    return run.parent / "logs" / f"{run.name}.log"


def failure_reason(record: Record, *, exit_code: int | None = None) -> str:
    """Return in one line why a run failed or stopped.

    The latest account wins: the signal that ended the process (negative `exit_code`), the `error: ...` that
    it printed last, the reason in the record, the last line of the log whatever it is (under torchrun not the
    run's own), the exit code.
    """
    if exit_code is not None and exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    lines = read_tail(log_file(record.path)).decode(errors="replace").strip().splitlines()
    last = lines[-1] if lines else ""
    if last.startswith(ERROR_PREFIX):
        return last.removeprefix(ERROR_PREFIX)
    recorded = (record.failure or {}).get("reason")
    return str(recorded or last or (f"exit code {exit_code}" if exit_code else "no reason recorded"))


def find_records(*roots: Path) -> list[Record]:
    """Every run directory at or below the given folders, by path; raises `UserError` for a folder that is not
    there."""
    found: dict[Path, Record] = {}
    for root in roots:
        if not root.is_dir():
            raise UserError(f"no such folder: {root}")
        candidates = [root / SPEC, *root.glob(f"*/{SPEC}"), *root.glob(f"*/*/{SPEC}")]
        found.update({file.parent.resolve(): Record(file.parent) for file in candidates if file.exists()})
    return [found[path] for path in sorted(found)]


@dataclass
class RecordWriter:
    """The one writer of a run directory. Use as a context: it holds the directory's lock until it is
    closed."""

    path: Path
    _events: Any = field(default=None, repr=False)
    _lock: Any = field(default=None, repr=False)

    def __enter__(self) -> RecordWriter:
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            (self.path / "samples").mkdir(exist_ok=True)
            self._lock = take_lock(self.path / LOCK, f"run directory {self.path}")
        except OSError as error:
            raise UserError(f"cannot write the run directory {self.path}: {error.strerror}") from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._events is not None:
            self._events.close()
        self._lock.close()  # which releases it

    def write_spec(self, toml: str) -> None:
        """Write the resolved spec; a spec that is there already must be the same."""
        file = self.path / SPEC
        if not file.exists():
            write_atomic(file, toml.encode())

    def begin(self, environment: Mapping[str, Any], *, after_step: int) -> None:
        """Open the record to continue after a step: later events are superseded, a torn line is dropped."""
        for name in (DONE, FAILED):
            (self.path / name).unlink(missing_ok=True)
        starts = _read_json(self.path / "environment.json") or []
        write_atomic(
            self.path / "environment.json",
            _dump([*starts, {**environment, "after_step": after_step}], indent=1),
        )
        file = self.path / EVENTS
        kept = [event for event in read_events(file) if event["step"] <= after_step]
        write_atomic(file, b"".join(_dump(event) + b"\n" for event in kept))
        self._events = open(file, "ab", buffering=0)  # noqa: SIM115 (closed by __exit__)

    def append(self, *events: Mapping[str, Any]) -> None:
        """Add events, each a whole line in one write; raises ValueError for a number that is not finite."""
        lines = b"".join(_dump(event) + b"\n" for event in events)
        if self._events.write(lines) != len(lines):
            # A disk that fills up writes a part without an error.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sync(self) -> None:
        """Force what was appended to the disk, before a checkpoint claims that it is there."""
        sync_file(self._events)

    def write_clock(self, step: int, seconds: Mapping[str, float]) -> None:
        """What the newest checkpoint had cost; kept out of it, so that its bytes tell nothing of the time."""
        write_atomic(self.path / CLOCK, _dump({"step": step, "seconds": seconds}))

    def finish(self, summary: Mapping[str, Any]) -> None:
        write_atomic(self.path / DONE, _dump(summary, indent=1))

    def fail(self, reason: Mapping[str, Any]) -> None:
        write_atomic(self.path / FAILED, _dump(reason, indent=1))


def lock_holder(path: Path) -> str | None:
    """Who holds a run directory (the text of its lock), or None when nobody does."""
    return holder(path / LOCK)


def _dump(value: Any, indent: int | None = None) -> bytes:
    return json.dumps(
        value, indent=indent, allow_nan=False, separators=(",", ":") if indent is None else None
    ).encode()


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
