"""The register of claims: an append-only file of JSON lines, each with the hash of the line before.

A claim that was written down before its runs began is worth more than one that was found in their results.
The hash covers the content of a claim (claim.py), so a claim that is changed later is no longer registered.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from harness.errors import UserError
from harness.files.files import lock_file, sync_file
from harness.files.parse import parse_json
from reports.audit.inputs.claim import Claim, claim_hash
from reports.audit.inputs.run_log import AuditRun

NAME = "register.jsonl"
Standing = Literal[
    "registered before the runs",
    "registered during the runs",
    "post hoc",
    "registered, times of runs unknown",
    "changed since it was registered",
    "not registered",
]


@dataclass(frozen=True)
class RegisterEntry:
    """A line of the register."""

    hash: str
    name: str
    time: str
    """UTC, ISO 8601."""

    @property
    def milliseconds(self) -> float:
        return 1000 * datetime.fromisoformat(self.time).timestamp()


def register_claims(
    file: Path, claims: Iterable[Claim], now: datetime | None = None
) -> list[tuple[RegisterEntry, bool]]:
    """Append claims and return their entries, each with whether it is new. A known claim keeps its time.

    Raises `UserError` for a register that was altered or cannot be written.
    """
    try:
        with open(file, "a+b") as lines:
            lock_file(lines)
            lines.seek(0)
            content = lines.read()
            known, last = _checked(file, content)
            found = []
            for claim in claims:
                entry, new = known.get(claim_hash(claim)), False
                if entry is None:
                    row, new = _row(claim, last, now or datetime.now(UTC)), True
                    lines.write(row + b"\n")
                    last = _digest(row)
                    entry = known[claim_hash(claim)] = _entry(json.loads(row))
                found.append((entry, new))
            sync_file(lines)
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from error
    return found


def read_register(file: Path) -> dict[str, RegisterEntry]:
    """Return entries by claim hash; empty if there is no register.

    Raises `UserError` if the register was altered or cannot be read.
    """
    try:
        return _checked(file, file.read_bytes())[0]
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error


def standing(claim: Claim, entries: Mapping[str, RegisterEntry], logs: Iterable[AuditRun]) -> Standing:
    """Return when a claim was registered, relative to its runs: `post hoc` if a run had finished before."""
    entry = entries.get(claim_hash(claim))
    if entry is None:
        changed = any(other.name == claim.name for other in entries.values())
        return "changed since it was registered" if changed else "not registered"
    runs = list(logs)
    started = [run.started for run in runs if run.started is not None]
    ended = [run.ended for run in runs if run.ended is not None]
    if not runs or len(started) < len(runs) or len(ended) < len(runs):
        return "registered, times of runs unknown"
    if entry.milliseconds >= min(ended):
        return "post hoc"
    early = entry.milliseconds < min(started)
    return "registered before the runs" if early else "registered during the runs"


def _row(claim: Claim, last: str, now: datetime) -> bytes:
    recorded = {"hash": claim_hash(claim), "name": claim.name, "time": now.isoformat(timespec="milliseconds")}
    return json.dumps(recorded | {"claim": claim.model_dump(mode="json"), "previous": last}).encode()


def _checked(file: Path, content: bytes) -> tuple[dict[str, RegisterEntry], str]:
    """Return entries by hash, and the digest of the last line, which the next line must contain."""
    entries, last = {}, ""
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            row = parse_json(line)
            intact = row["previous"] == last and row["hash"] == claim_hash(
                Claim.model_validate_json(json.dumps(row["claim"]))
            )
            entry = _entry(row) if intact else None
        except (ValueError, KeyError, TypeError):
            entry = None
        if entry is None:
            raise UserError(
                f"{file} line {number} was altered, but a register is append-only; restore the file, or "
                "start a new one"
            )
        entries.setdefault(entry.hash, entry)
        last = _digest(line)
    if content and not content.endswith(b"\n"):
        raise UserError(f"{file}: the last line is torn; restore the file, or remove that line")
    return entries, last


def _entry(row: dict[str, Any]) -> RegisterEntry:
    entry = RegisterEntry(str(row["hash"]), str(row["name"]), str(row["time"]))
    # Raises ValueError if the time is invalid.
    entry.milliseconds  # noqa: B018
    return entry


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
