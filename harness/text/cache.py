"""Cached features of captions: each caption is encoded once, for all runs and data sets that have it.

A store belongs to one encoder: its weights, its settings and the kind of device. Its name also covers the
features of a few captions, which the encoder computes at each start. So a kernel or a thread count that
changes one of their bits gets another store.

Two passes are made over the captions. The first one finds those that are not stored, with memory for one
range of hashes at a time. The second one encodes them. A killed process continues where it was, and another
process that needs the same captions waits.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from harness.backbone.condition import Text
from harness.files.cache import cache_dir
from harness.files.files import locked, writing
from harness.files.progress import progress_bar
from harness.text.base import BLOCK, TextEncoder, padded
from harness.text.store import RANGES, Hashes, Rows, Store, check_real_tokens, hashes_of, rows_of

T = TypeVar("T")
VERSION = 1
"""Version of the features; increase it with every change that moves one, to renew the cache."""
PROBE = ("", "a small red seven left of two large blue ones", "two", "写真")
PART_BYTES, PART_BLOCKS = 256 << 20, 1024
"""Size of the rows of real tokens, and number of blocks, after which a part is written."""
ROWS = 1 << 18
"""Hashes that are read at once."""
UNFINISHED = ".hashes-"
CHUNK = 4096
"""Captions whose hashes are computed at once."""

Captions = Callable[[], Iterator[str]]
"""A function that yields all captions, in the same order each time."""


def open_store(encoder: TextEncoder) -> Store:
    """Return the store of an encoder. Its name does not depend on where the weights are."""
    probe = encode_block(encoder, PROBE)
    numbers = hashlib.sha256(probe.features.numpy().tobytes())
    if probe.mask is not None:
        numbers.update(probe.mask.numpy().tobytes())
    parts = [VERSION, encoder.sha256, encoder.dim, encoder.length, numbers.hexdigest()]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
    folder = cache_dir("captions", key)
    return Store(folder, encoder.length, encoder.dim, tokens=encoder.longest, masked=probe.mask is not None)


class Added(NamedTuple):
    """The captions of a data set, after they were added to a store."""

    captions: int
    distinct: int
    new: int
    """Captions that were encoded now."""
    cut: int
    """Captions with more tokens than the encoder reads."""
    first_cut: int | None
    """The place of the first of these in the order of captions."""


def add_captions(
    store: Store, encoder: TextEncoder, captions: Captions, note: Callable[[str], None] = lambda _: None
) -> Added:
    """Encode the captions that a store lacks, and describe all of them.

    Raises `UserError` if the store cannot be written.
    """
    with writing(store.folder), locked(store.folder / "store"):
        # Of a process that was killed.
        for leftover in store.folder.glob(f"{UNFINISHED}*"):
            shutil.rmtree(leftover)
        store.repair()
        store.refresh()
        with tempfile.TemporaryDirectory(dir=store.folder, prefix=UNFINISHED) as folder:
            table = _table_of_hashes(captions, Path(folder) / "hashes")
            first = _first_of_each(table)
            missing = first.copy()
            for rows in _chunks(len(table)):
                missing[rows] &= store.find(Hashes(*table[rows].T)) < 0
            if new := int(missing.sum()):
                note(f"encoding {new} captions with text encoder '{encoder.name}'")
                wanted = (text for text, is_new in zip(captions(), missing, strict=True) if is_new)
                with progress_bar(new, "captions") as advance:
                    _encode(store, encoder, wanted, advance)
                store.refresh()
            return Added(len(table), int(first.sum()), new, *_cut(store, table))


def _cut(store: Store, table: np.ndarray) -> tuple[int, int | None]:
    """Return the number of captions that were cut, and the place of the first one."""
    cut, first = 0, None
    for rows in _chunks(len(table)):
        longer = np.flatnonzero(store.uncut(store.find(Hashes(*table[rows].T))) > store.tokens)
        first = rows.start + int(longer[0]) if first is None and len(longer) else first
        cut += len(longer)
    return cut, first


def encode_block(encoder: TextEncoder, captions: Sequence[str]) -> Text:
    """Return the features of at most `BLOCK` captions, which do not depend on the number of others.

    An encoder of a plug-in may not pad its passes itself.
    """
    return encoder.encode(padded(captions))[: len(captions)]


def _table_of_hashes(captions: Captions, file: Path) -> np.ndarray:
    """Write the hashes of all captions to a file, and return it as a table uint64 (n, 2)."""
    with open(file, "wb") as out:
        for texts in batched(captions(), CHUNK):
            out.write(np.stack(hashes_of(texts), axis=1).tobytes())
    return np.memmap(file, "<u8", "r").reshape(-1, 2) if file.stat().st_size else np.empty((0, 2), "<u8")


def _first_of_each(table: np.ndarray) -> np.ndarray:
    """Return whether a caption is the first one with its hash, bool (n,)."""
    first = np.zeros(len(table), bool)
    for number in range(RANGES):
        inside = (
            rows.start + np.flatnonzero(table[rows, 0] >> np.uint64(58) == number)
            for rows in _chunks(len(table))
        )
        place = np.concatenate([*inside, np.empty(0, np.int64)])
        high, low = table[place].T
        # The sort is stable, so the first of equal captions stays first.
        order = np.lexsort((low, high))
        same = (np.diff(high[order]) == 0) & (np.diff(low[order]) == 0)
        first[place[order[np.concatenate([[True], ~same])[: len(order)]]]] = True
    return first


def _chunks(count: int) -> Iterator[slice]:
    for start in range(0, count, ROWS):
        yield slice(start, min(start + ROWS, count))


def _encode(
    store: Store, encoder: TextEncoder, captions: Iterator[str], advance: Callable[[int], None]
) -> None:
    """Encode captions block by block, and write a part whenever enough rows are waiting."""
    texts: list[str] = []
    blocks: list[Rows] = []
    for block in batched(captions, BLOCK):
        text = encode_block(encoder, block)
        check_real_tokens(text)
        texts += block
        blocks.append(rows_of(text))
        advance(len(block))
        if len(blocks) == PART_BLOCKS or sum(rows.values.nbytes for rows in blocks) >= PART_BYTES:
            store.write_part(texts, blocks, encoder.token_counts(texts))
            texts, blocks = [], []
    if texts:
        store.write_part(texts, blocks, encoder.token_counts(texts))


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield items in lists of this size; the last one may be shorter."""
    waiting = iter(items)
    while found := list(itertools.islice(waiting, size)):
        yield found
