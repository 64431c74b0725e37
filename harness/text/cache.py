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
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from harness.backbone.condition import Text
from harness.files.cache import cache_dir
from harness.files.files import locked, writing
from harness.files.progress import progress_bar
from harness.text.base import BLOCK, TextEncoder
from harness.text.store import RANGES, Hashes, Store, check_real_tokens, hashes_of

VERSION = 1
"""Version of the features; increase it with every change that moves one, to renew the cache."""
PROBE = ("", "a small red seven left of two large blue ones", "two", "写真")
PART_BYTES = 256 << 20
"""Size of the rows after which a part is written."""
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
    return Store(cache_dir("captions", key), encoder.length, encoder.dim, masked=probe.mask is not None)


def add_captions(
    store: Store, encoder: TextEncoder, captions: Captions, note: Callable[[str], None] = lambda _: None
) -> int:
    """Encode the captions that a store lacks, and return their number.

    Raises `UserError` if the store cannot be written.
    """
    with writing(store.folder), locked(store.folder / "store"):
        # Of a process that was killed.
        for leftover in store.folder.glob(f"{UNFINISHED}*"):
            shutil.rmtree(leftover)
        store.repair()
        store.refresh()
        with tempfile.TemporaryDirectory(dir=store.folder, prefix=UNFINISHED) as folder:
            missing = _missing(store, captions, Path(folder))
        total = int(missing.sum())
        if total:
            note(f"encoding {total} captions with text encoder '{encoder.name}'")
            wanted = (text for text, new in zip(captions(), missing, strict=True) if new)
            with progress_bar(total, "captions") as advance:
                _encode(store, encoder, wanted, advance)
            store.refresh()
        return total


def encode_block(encoder: TextEncoder, captions: Sequence[str]) -> Text:
    """Return the features of at most `BLOCK` captions from a pass of exactly `BLOCK`.

    All passes have one shape, so that the features of a caption do not depend on the number of others.
    """
    return encoder.encode([*captions, *[""] * (BLOCK - len(captions))])[: len(captions)]


def _missing(store: Store, captions: Captions, folder: Path) -> np.ndarray:
    """Return, for each caption in order, whether it is the first of its kind and not stored, bool (n,)."""
    count = _write_hashes(captions, folder / "hashes")
    missing = np.zeros(count, bool)
    if not count:
        return missing
    table = np.memmap(folder / "hashes", "<u8", "r").reshape(-1, 2)
    for number in range(RANGES):
        rows = np.concatenate(
            [
                start + np.flatnonzero(table[start : start + (1 << 20), 0] >> np.uint64(58) == number)
                for start in range(0, count, 1 << 20)
            ]
        )
        found = Hashes(table[rows, 0], table[rows, 1])
        # The sort is stable, so the first of equal captions stays first.
        order = np.lexsort((found.low, found.high))
        same = (np.diff(found.high[order]) == 0) & (np.diff(found.low[order]) == 0)
        first = order[np.concatenate([[True], ~same])[: len(order)]]
        new = store.find(Hashes(found.high[first], found.low[first])) < 0
        missing[rows[first[new]]] = True
    return missing


def _write_hashes(captions: Captions, file: Path) -> int:
    """Write the hashes of all captions to a file, and return their number."""
    count, waiting = 0, []
    with open(file, "wb") as out:

        def flush() -> None:
            out.write(np.stack(hashes_of(waiting), axis=1).tobytes() if waiting else b"")
            waiting.clear()

        for text in captions():
            waiting.append(text)
            count += 1
            if len(waiting) == CHUNK:
                flush()
        flush()
    return count


def _encode(
    store: Store, encoder: TextEncoder, captions: Iterator[str], advance: Callable[[int], None]
) -> None:
    """Encode captions block by block, and write a part whenever enough rows are waiting."""
    texts: list[str] = []
    features: list[Text] = []
    block_bytes = BLOCK * encoder.length * encoder.dim * 4
    blocks_in_part = max(1, PART_BYTES // block_bytes)
    for block in _blocks(captions):
        found = encode_block(encoder, block)
        check_real_tokens(found)
        texts += block
        features.append(found)
        advance(len(block))
        if len(features) == blocks_in_part:
            store.write_part(texts, features)
            texts, features = [], []
    if features:
        store.write_part(texts, features)


def _blocks(captions: Iterator[str]) -> Iterator[list[str]]:
    block: list[str] = []
    for text in captions:
        block.append(text)
        if len(block) == BLOCK:
            yield block
            block = []
    if block:
        yield block
