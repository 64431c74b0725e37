"""The chain of a record: hashes of its spec and of its events up to each checkpoint, in `chain.jsonl`.

    step, lines, bytes, sha256   the first `bytes` of events.jsonl: the step of the last event, their number
                                 of lines and their hash
    spec                         hash of spec.toml
    spec_before                  its hash before it is replaced; the next link has none
    end                          true if the run was done after these events
    previous                     hash of the link before (harness/files/hash_chain.py)

A link that covers fewer bytes than earlier ones replaces them: the run was resumed from an older checkpoint.
Links are written before what would contradict them, so a run that is killed never contradicts its chain.
Nor does one after a power cut: events are on the disk before a link that covers them, and links before what
they allow.
Records of versions without chains have no such file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

# Any: links are JSON objects.
from typing import Any

from harness.errors import UserError
from harness.files.files import no_link, sync_path
from harness.files.hash_chain import Chain, Row, open_chain, read_chain
from harness.files.parse import parse_json
from harness.records.shapes import is_count

SPEC, EVENTS, CHAIN = "spec.toml", "events.jsonl", "chain.jsonl"
WHAT = "the chain of a record"
NEWLINE = b"\n"
NOTHING = {"step": 0, "lines": 0, "bytes": 0, "sha256": hashlib.sha256().hexdigest()}


@dataclass
class Covered:
    """The events that were written so far, as a link describes them."""

    step: int = 0
    lines: int = 0
    size: int = 0
    # Any: hashlib's type has no public name.
    total: Any = field(default_factory=hashlib.sha256)

    def add(self, content: bytes, step: int) -> None:
        """Add complete lines, of which the last has this step."""
        self.total.update(content)
        self.step, self.lines, self.size = step, self.lines + content.count(NEWLINE), self.size + len(content)

    def link(self) -> dict[str, Any]:
        sha256 = self.total.hexdigest()
        return {"step": self.step, "lines": self.lines, "bytes": self.size, "sha256": sha256}


class ChainWriter:
    """An open chain of a run. Each link is written before what would contradict the links before it."""

    def __init__(self, run: Path) -> None:
        self._events, new = run / EVENTS, not (run / CHAIN).exists()
        with open_chain(run / CHAIN, is_link, WHAT, drop_torn=True) as chain:
            self.links, last = chain.rows, chain.last
        # Unbuffered, so that a killed process loses no link, and a failed write leaves none for later.
        self._file = open(run / CHAIN, "ab", buffering=0, opener=no_link)  # noqa: SIM115 (closed by close)
        self._chain = Chain(self._file, [], last)
        if new:
            sync_path(run)
        # None until `begin`, because events that were not read are not known.
        self._covered: Covered | None = None

    def begin(self, old: bytes, new: bytes, spec: str) -> None:
        """Append the link that allows `new` events to replace `old` ones: it covers what they share.

        `spec` is the hash of spec.toml, empty without one.
        """
        last = self.links[-1] if self.links else None
        # The spec that was announced may not have been written.
        known = last is not None and last.get("spec_before") != spec
        self._append(covering(_shared(old, new)), last["spec"] if last is not None and known else spec)
        self._covered = covering(new)

    def add(self, content: bytes, step: int) -> None:
        """Add events that were appended to the record, of which the last has this step."""
        if self._covered is not None:
            self._covered.add(content, step)

    def seal(self, *, end: bool = False) -> None:
        """Append a link that covers all events so far; with `end`, the run is done."""
        if self._covered is not None:
            self._append(self._covered, self.links[-1]["spec"], **({"end": True} if end else {}))

    def announce_spec(self, new: str, before: str) -> None:
        """Append a link with the hash of a spec that will be written next. Until `confirm_spec`, both fit."""
        self._of_spec({"spec": new, "spec_before": before})

    def confirm_spec(self) -> None:
        """Append a link without the hash of the spec that was replaced."""
        self._of_spec({"spec": self.links[-1]["spec"]})

    def close(self) -> None:
        self._file.close()

    def _of_spec(self, spec: Mapping[str, str]) -> None:
        last = self.links[-1] if self.links else NOTHING
        end = {"end": True} if last.get("end") else {}
        events = self._covered.link() if self._covered is not None else {name: last[name] for name in NOTHING}
        self._write({**events, **end, **spec})

    def _append(self, covered: Covered, spec: str, **end: bool) -> None:
        self._write({**covered.link(), "spec": spec, **end})

    # Any: a link is a JSON object.
    def _write(self, link: Mapping[str, Any]) -> None:
        """Append a link between two flushes to the disk: of the events that it covers, and of itself."""
        if self._events.exists():
            sync_path(self._events)
        self.links.append(self._chain.append(link))
        os.fsync(self._file.fileno())


def read_links(run: Path) -> list[Row]:
    """Return the links of a record's chain, empty for one without it.

    Raises `UserError` if the chain was altered.
    """
    return read_chain(run / CHAIN, is_link, WHAT, drop_torn=True)


def standing(links: Sequence[Row]) -> list[Row]:
    """Return the links that no later one replaces, by the bytes that they cover."""
    kept: list[Row] = []
    for link in links:
        while kept and kept[-1]["bytes"] >= link["bytes"]:
            kept.pop()
        kept.append(link)
    return kept


def events_fault(content: bytes, links: Sequence[Row], *, upto: int | None = None, done: bool = False) -> str:
    """Return in words what was lost, altered or added in the events of a record; empty if they fit its chain.

    Links after step `upto` are not compared. Of a run that is `done`, the events end where its chain ends.
    """
    covered, last = Covered(), None
    compared = [link for link in standing(links) if upto is None or link["step"] <= upto]
    for link in compared:
        part = content[covered.size : link["bytes"]]
        before = Covered(covered.step, covered.lines, covered.size)
        covered.add(part, link["step"])
        if covered.link() != {name: link[name] for name in NOTHING}:
            lines = max(one["lines"] for one in compared if one["step"] == link["step"])
            return _difference(content[before.size :], before, link["step"], lines - before.lines)
        last = link
    more = content[covered.size :]
    if done and more and last is not None and last.get("end"):
        added = max(1, more.count(NEWLINE))
        return f"{_events(added)} after the end of the run {_were(added)} added"
    return ""


def spec_fits(digest: str, links: Sequence[Row]) -> bool:
    """Return whether a spec of this hash is the one that a record's chain names."""
    return not links or not links[-1]["spec"] or digest in (links[-1]["spec"], links[-1].get("spec_before"))


def covering(content: bytes) -> Covered:
    """Return the description of complete events."""
    covered = Covered()
    covered.add(content, _step(content[:-1].rpartition(b"\n")[2]) or 0)
    return covered


def spec_digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def is_link(row: Row) -> bool:
    """Return whether a row is a link of a record's chain."""
    texts = (row["sha256"], row["spec"], row.get("spec_before", ""))
    numbers = (row["step"], row["lines"], row["bytes"])
    return all(map(is_count, numbers)) and all(isinstance(text, str) for text in texts)


def digest_of(file: Path) -> str:
    """Return the hash of a spec's file, empty if it cannot be read."""
    try:
        return spec_digest(file.read_bytes())
    except OSError:
        # Whoever reads the spec reports that it cannot be read.
        return ""


def check_spec(run: Path) -> None:
    """Raise `UserError` if the spec of a run is not the one that its chain names."""
    file = run / SPEC
    if not (digest := digest_of(file)) or spec_fits(digest, read_links(run)):
        return
    raise UserError(
        f"{file} was altered after the run wrote it; restore the file, and change settings with --set, or "
        "start a new run from a copy of the file"
    )


def check_events(file: Path, content: bytes, links: Sequence[Row], upto: int) -> None:
    """Raise `UserError` if events up to a step do not fit their chain, so that a run cannot continue them."""
    if fault := events_fault(content, links, upto=upto):
        raise UserError(
            f"{file} does not fit its chain: {fault}; restore the file, or delete {file.parent} to train "
            "the run again"
        )


def _shared(old: bytes, new: bytes) -> bytes:
    """Return the complete lines with which two contents begin."""
    if old.startswith(new):
        return new
    pairs = zip(old.splitlines(keepends=True), new.splitlines(keepends=True), strict=False)
    return b"".join(line for line, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _difference(content: bytes, before: Covered, end: int, expected: int) -> str:
    """Describe the events that follow those that fit, up to a step, of which the chain counts `expected`."""
    steps = [_step(line) for line in content.split(NEWLINE)[:-1]]
    there = next((n for n, step in enumerate(steps) if step is not None and step > end), len(steps))
    since = f"between step {before.step} and step {end}" if before.lines else f"up to step {end}"
    since = f"at step {end}" if before.lines and before.step == end else since
    if there < expected:
        lost = expected - there
        return f"{lost} of {_events(expected)} {since} {_were(lost)} lost"
    added = there - expected
    return f"{_events(added)} {since} {_were(added)} added" if added else f"events {since} were altered"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def _events(count: int) -> str:
    return f"{count} event" if count == 1 else f"{count} events"


def _step(line: bytes) -> int | None:
    """Return the step of a line; None for one that is no event."""
    try:
        event = parse_json(line)
    except ValueError:
        return None
    step = event.get("step") if isinstance(event, dict) else None
    return step if is_count(step) else None
