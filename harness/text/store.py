"""Features of captions on disk: rows in parts, found by the hash of a caption, read memory-mapped.

    part-NNNNNN.rows     float32 (tokens, D), the real tokens of its captions one after the other
    part-NNNNNN.entries  `ENTRY` of each caption of the part, sorted by hash
    part-NNNNNN.sha256   checksums of both; it is written last, so a part that has it is complete
    index-KEY.hashes     the hashes of all parts, sorted; KEY is a hash of the parts
    index-KEY.entries    their entries in the same order
    index-KEY.sha256     checksums of both, written last
    verified.json        the stamps of the files of each part whose checksums were compared

The index is merged range by range, so memory does not grow with the number of captions. A process that is
killed loses at most the part that it was writing.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from harness.backbone.condition import Text
from harness.errors import UserError
from harness.files.files import replacing, write_atomic
from harness.files.parse import parse_json
from harness.files.stamps import stamp_of, stored
from metrics.files.hashing import sha256_of

ENTRY = np.dtype(
    [("hash", "<u8"), ("low", "<u8"), ("part", "<u4"), ("tokens", "<u4"), ("start", "<u8"), ("uncut", "<u8")]
)
"""The hash of a caption in two halves, its part, its rows and the first of them, and its tokens before it was
cut."""
RANGES = 64
"""Ranges of hashes that are merged one after the other."""
VERIFIED = "verified.json"


class Hashes(NamedTuple):
    """The hashes of captions: the first and the second 8 bytes of their sha256, uint64 (n,)."""

    high: np.ndarray
    low: np.ndarray


class Rows(NamedTuple):
    """The features of some captions as they are stored, without padding."""

    values: np.ndarray
    """float32 (tokens, D), one caption after the other."""
    counts: np.ndarray
    """Number of tokens of each caption, int64 (n,)."""


def hashes_of(captions: Sequence[str]) -> Hashes:
    """Return the hashes of captions."""
    digests = [hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:16] for text in captions]
    halves = np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2)
    return Hashes(halves[:, 0].copy(), halves[:, 1].copy())


class Store:
    """The features of captions in a folder; `length` and `dim` are those of a text.

    Nothing is found before `refresh`. Whoever calls a method that writes or removes files holds the folder's
    lock.
    """

    def __init__(self, folder: Path, length: int, dim: int, *, tokens: int, masked: bool) -> None:
        """`tokens` is the number of tokens after which a caption is cut."""
        self.folder, self.length, self.dim = folder, length, dim
        self.tokens, self.masked = tokens, masked
        self._high, self._entries = np.empty(0, "<u8"), np.empty(0, ENTRY)
        self._rows: list[np.ndarray] = []
        self._written: list[int] = []

    def __len__(self) -> int:
        return len(self._high)

    def find(self, hashes: Hashes) -> np.ndarray:
        """Return the position in the index of each hash, -1 for one that is not stored, int64 (n,)."""
        place = np.searchsorted(self._high, hashes.high)
        found = np.full(len(place), -1)
        waiting = np.arange(len(place))
        # Different captions may share the first 8 bytes, and are then neighbours.
        while len(waiting):
            at = place[waiting]
            waiting, at = waiting[at < len(self)], at[at < len(self)]
            same = self._high[at] == hashes.high[waiting]
            waiting, at = waiting[same], at[same]
            right = self._entries["low"][at] == hashes.low[waiting]
            found[waiting[right]] = at[right]
            waiting = waiting[~right]
            place[waiting] += 1
        return found

    def read(self, captions: Sequence[str]) -> Text:
        """Return the features of captions, float32 (n, L, D). Raises `KeyError` for one that is missing."""
        places = self.find(hashes_of(captions))
        for row in np.flatnonzero(places < 0)[:1]:
            raise KeyError(captions[row])
        features = np.zeros((len(captions), self.length, self.dim), np.float32)
        tokens = np.zeros(len(captions), np.int64)
        for row, entry in enumerate(self._entries[places]):
            start, count = int(entry["start"]), int(entry["tokens"])
            features[row, :count] = self._rows[int(entry["part"])][start : start + count]
            tokens[row] = count
        mask = torch.arange(self.length) < torch.from_numpy(tokens)[:, None] if self.masked else None
        return Text(torch.from_numpy(features), mask)

    def uncut(self, places: np.ndarray) -> np.ndarray:
        """Return the number of tokens before they were cut of the captions at places of the index."""
        return self._entries["uncut"][places].astype(np.int64)

    def write_part(self, captions: Sequence[str], blocks: Sequence[Rows], uncut: np.ndarray) -> None:
        """Write the features of captions as a new part, with their numbers of tokens before they were cut.

        `refresh` makes it visible.
        """
        number = len(self.parts())
        hashes = hashes_of(captions)
        entries = np.zeros(len(captions), ENTRY)
        counts = np.concatenate([block.counts for block in blocks])
        entries["hash"], entries["low"], entries["part"] = hashes.high, hashes.low, number
        entries["tokens"], entries["start"] = counts, np.cumsum(counts) - counts
        entries["uncut"] = uncut
        entries = entries[np.lexsort((hashes.low, hashes.high))]
        with replacing(self._file(number, "rows")) as temporary, open(temporary, "wb") as out:
            for block in blocks:
                out.write(block.values.tobytes())
        write_atomic(self._file(number, "entries"), entries.tobytes())
        write_atomic(self._file(number, "sha256"), _sums(self._files(number)))
        self._written.append(number)

    def refresh(self) -> None:
        """Open the index of all parts; merge their entries first if it does not exist or is damaged."""
        parts = self.parts()
        base = self.folder / f"index-{self._key(parts)}"
        files = [base.with_suffix(end) for end in (".hashes", ".entries")]
        sums = base.with_suffix(".sha256")
        if not sums.exists() or not _match(files, sums):
            with replacing(files[0]) as first, replacing(files[1]) as second:
                _write_merged([_mapped(self._file(part, "entries"), ENTRY) for part in parts], first, second)
            write_atomic(sums, _sums(files))
        # An index of no captions cannot be mapped.
        if parts:
            self._high, self._entries = np.memmap(files[0], "<u8", "r"), np.memmap(files[1], ENTRY, "r")
        # All rows are mapped now: another process may later replace a part that it finds damaged, and what is
        # mapped keeps its content, as the index does.
        self._rows = [_mapped(self._file(part, "rows"), "<f4").reshape(-1, self.dim) for part in parts]
        self._note_written()
        for old in self.folder.glob("index-*"):
            if old not in (*files, sums):
                old.unlink(missing_ok=True)

    def repair(self) -> None:
        """Remove damaged parts and all after them, so that they are written again.

        Checksums are compared for parts whose files have other stamps than when they last matched.
        """
        parts, known = self.parts(), self._verified()
        matching: dict[str, list[list[int]]] = {}
        for part in parts:
            stamps, now = self._stamps(part), time.time_ns()
            if stamps and known.get(str(part)) == stamps:
                matching[str(part)] = stamps
            elif _match(self._files(part), self._file(part, "sha256")):
                matching[str(part)] = [stored(stamp, now) for stamp in stamps]
            else:
                for damaged in reversed(parts[part:]):
                    for end in ("sha256", "entries", "rows"):
                        self._file(damaged, end).unlink(missing_ok=True)
                break
        self._write_verified(known, matching)

    def parts(self) -> list[int]:
        """Return the numbers of the complete parts: 0, 1, ... without a gap."""
        number = 0
        while self._file(number, "sha256").exists():
            number += 1
        return list(range(number))

    def _note_written(self) -> None:
        """Record the stamps of the parts that this process has written, which need no comparison."""
        known, now = self._verified(), time.time_ns()
        written = {str(part): [stored(s, now) for s in self._stamps(part)] for part in self._written}
        self._write_verified(known, known | written)
        self._written = []

    # Any: JSON.
    def _verified(self) -> dict[str, Any]:
        """Return the stamps of parts whose checksums matched; none if their file is missing or damaged."""
        try:
            found = parse_json((self.folder / VERIFIED).read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write_verified(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        if after != before:
            write_atomic(self.folder / VERIFIED, json.dumps(after).encode())

    def _stamps(self, part: int) -> list[list[int]]:
        """Return the stamps of the files of a part; none if one is missing."""
        try:
            return [stamp_of(file) for file in (*self._files(part), self._file(part, "sha256"))]
        except OSError:
            return []

    def _files(self, part: int) -> list[Path]:
        return [self._file(part, end) for end in ("rows", "entries")]

    def _file(self, part: int, end: str) -> Path:
        return self.folder / f"part-{part:06d}.{end}"

    def _key(self, parts: Iterable[int]) -> str:
        content = hashlib.sha256()
        for part in parts:
            content.update(self._file(part, "sha256").read_bytes())
        return content.hexdigest()[:16]


def _mapped(file: Path, kind: np.dtype | str) -> np.ndarray:
    """Return the content of a file, memory-mapped without a descriptor that stays open.

    A store has more parts than a process may have open files, and `np.memmap` keeps one open for each.
    """
    if not (size := file.stat().st_size):
        return np.empty(0, kind)
    return torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8).numpy().view(kind)


def _write_merged(parts: Sequence[np.ndarray], hashes: Path, entries: Path) -> None:
    with open(hashes, "wb") as high, open(entries, "wb") as rest:
        for merged in _merged(parts) if parts else ():
            high.write(np.ascontiguousarray(merged["hash"]).tobytes())
            rest.write(merged.tobytes())


def _sums(files: Iterable[Path]) -> bytes:
    return "\n".join(map(sha256_of, files)).encode()


def _match(files: Sequence[Path], sums: Path) -> bool:
    """Return whether files have the checksums that a file holds."""
    return all(file.exists() for file in files) and sums.read_bytes() == _sums(files)


def _merged(files: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the entries of several sorted files in order, one range of hashes at a time."""
    edges = [number << 58 for number in range(RANGES)]
    cuts = [[*np.searchsorted(file["hash"], np.array(edges, "<u8")), len(file)] for file in files]
    for number in range(RANGES):
        found = [file[cut[number] : cut[number + 1]] for file, cut in zip(files, cuts, strict=True)]
        merged = np.concatenate(found)
        yield merged[np.lexsort((merged["low"], merged["hash"]))]


def rows_of(text: Text) -> Rows:
    """Return the rows of some captions that are stored: those of real tokens."""
    if text.mask is None:
        values, counts = text.features.flatten(0, 1), np.full(len(text), text.features.shape[1])
    else:
        values, counts = text.features[text.mask], text.mask.sum(1).numpy()
    return Rows(values.numpy().astype("<f4", copy=False), counts)


def check_real_tokens(text: Text) -> None:
    """Raise `UserError` for features whose real tokens are not the first ones of a text."""
    if text.mask is not None and not torch.equal(text.mask, text.mask.sort(dim=1, descending=True).values):
        raise UserError("a text encoder puts padding before real tokens; choose one that pads at the end")
