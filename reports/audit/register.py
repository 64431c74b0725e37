"""The register of claims: an append-only file of JSON lines, each with the hash of the line before.

A claim that was written down before its runs began is worth more than one that was found in their results.
The hash covers the content of a claim (claim.py), so a claim that is changed later is no longer registered.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol

from harness.files.hash_chain import Row, open_chain, read_chain
from reports.audit.inputs.claim import Claim, claim_hash, raised_from
from reports.audit.inputs.success_claim import SuccessClaim

NAME = "register.jsonl"
Standing = Literal[
    "registered before the runs",
    "registered during the runs",
    "post hoc",
    "registered, times of runs unknown",
    "changed since it was registered",
    "not registered",
]


AnyClaim = Claim | SuccessClaim
KINDS: dict[str, type[AnyClaim]] = {"claim": Claim, "success": SuccessClaim}
"""The key of a claim in its line -> its kind."""


class Timed(Protocol):
    """A run with the times between which it trained, in milliseconds since 1970; None if not recorded."""

    @property
    def started(self) -> float | None: ...

    @property
    def ended(self) -> float | None: ...


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
    file: Path, claims: Iterable[AnyClaim], now: datetime | None = None
) -> list[tuple[RegisterEntry, bool]]:
    """Append claims and return their entries, each with whether it is new. A known claim keeps its time.

    Raises `UserError` for a register that was altered or cannot be written.
    """
    with open_chain(file, _is_entry, "a register") as register:
        known, found = _by_hash(register.rows), []
        for claim in claims:
            entry, new = known.get(claim_hash(claim)), False
            if entry is None:
                row = register.append(_row(claim, now or datetime.now(UTC)))
                entry, new = known.setdefault(claim_hash(claim), _entry(row)), True
            found.append((entry, new))
    return found


def read_register(file: Path) -> dict[str, RegisterEntry]:
    """Return entries by claim hash; empty if there is no register.

    Raises `UserError` if the register was altered or cannot be read.
    """
    return _by_hash(read_chain(file, _is_entry, "a register"))


def registered_as(claim: AnyClaim, entries: Mapping[str, RegisterEntry]) -> RegisterEntry | None:
    """Return the earliest entry of a claim; for an anytime claim whose number of planned pairs was raised,
    that of its first version."""
    earlier = raised_from(claim) if isinstance(claim, Claim) else ()
    found = [entries[one] for one in (claim_hash(claim), *earlier) if one in entries]
    return min(found, key=lambda entry: entry.milliseconds, default=None)


def standing(claim: AnyClaim, entries: Mapping[str, RegisterEntry], logs: Iterable[Timed]) -> Standing:
    """Return when a claim was registered, relative to its runs: `post hoc` if a run had finished before."""
    entry = registered_as(claim, entries)
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


def _row(claim: AnyClaim, now: datetime) -> Row:
    recorded = {"hash": claim_hash(claim), "name": claim.name, "time": now.isoformat(timespec="milliseconds")}
    kind = next(key for key, model in KINDS.items() if isinstance(claim, model))
    return recorded | {kind: claim.model_dump(mode="json")}


def _is_entry(row: Row) -> bool:
    """Return whether the claim of a row has its hash and name, and its time can be read."""
    (kind,) = KINDS.keys() & row.keys()
    claim = KINDS[kind].model_validate_json(json.dumps(row[kind]))
    named = row["hash"] == claim_hash(claim) and row["name"] == claim.name
    return named and _entry(row).milliseconds > 0


def _by_hash(rows: Iterable[Row]) -> dict[str, RegisterEntry]:
    entries: dict[str, RegisterEntry] = {}
    for row in rows:
        entry = _entry(row)
        entries.setdefault(entry.hash, entry)
    return entries


def _entry(row: Row) -> RegisterEntry:
    return RegisterEntry(str(row["hash"]), str(row["name"]), str(row["time"]))
