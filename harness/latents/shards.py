"""A folder of encoded moments: what it says of itself, and its shards, checked and memory-mapped.

latents.json            what was encoded with what, and the sha256 of every file; written last, so it marks a
whole folder index.npz               labels int64 (N,), and the bytes by which the source splits its samples,
with their ends (N,) shard-00000.npy ...     (rows, copies, 2, c, h, w): mean and standard deviation; a second
copy is of mirrored images
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.errors import UserError
from harness.files.cache import cache_dir
from harness.files.files import locked, write_atomic
from metrics.files.hashing import sha256_of

FORMAT, MANIFEST, INDEX = "flowrace-latents-1", "latents.json", "index.npz"
PLACES = ("root", "weights")
"""Fields that tell where something lies, not what it is."""


class Index(NamedTuple):
    labels: np.ndarray
    keys: bytes
    ends: np.ndarray

    def key(self, number: int) -> bytes:
        return self.keys[self.ends[number - 1] if number else 0 : self.ends[number]]


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.npy"


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises `UserError` for a folder that is not one of encoded moments, or not whole yet."""
    try:
        found = json.loads((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise UserError(
            f"data.root = {folder} has no {MANIFEST}: expected a folder that flowrace data encode has finished"
        ) from error
    except ValueError as error:
        raise UserError(f"{folder / MANIFEST} is damaged: run flowrace data encode again") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"{folder / MANIFEST} is not of the format {FORMAT}: encode the images again")
    return found


def fingerprint(manifest: dict[str, Any]) -> str:
    """16 hex digits over all that a manifest says, but for the places of things."""
    return hashlib.sha256(json.dumps(without_places(manifest), sort_keys=True).encode()).hexdigest()[:16]


def without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_places(item) for name, item in value.items() if name not in PLACES}
    return value


def check(folder: Path, manifest: dict[str, Any]) -> None:
    """Compare every file with its sha256, unless it is known to have passed at its present size and time of
    change.

    Raises `UserError` naming the first that is absent or damaged.
    """
    store = cache_dir("latents") / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]}.json"
    with locked(store):
        known = json.loads(store.read_bytes()) if store.exists() else {}
        stamps = {name: [_stamp(folder / name), sha256] for name, sha256 in manifest["files"].items()}
        stale = [name for name, stamp in stamps.items() if known.get(name) != stamp]
        with ThreadPoolExecutor() as pool:
            for name, found in zip(stale, pool.map(lambda n: sha256_of(folder / n), stale), strict=True):
                if found != manifest["files"][name]:
                    raise damaged(folder / name)
        if stale:
            write_atomic(store, json.dumps(stamps).encode())


def read_index(folder: Path) -> Index:
    with np.load(folder / INDEX, allow_pickle=False) as found:
        return Index(found["labels"], found["keys"].tobytes(), found["ends"])


def open_shards(folder: Path, manifest: dict[str, Any]) -> list[np.ndarray]:
    """Memory-mapped, in order."""
    names = sorted(name for name in manifest["files"] if name != INDEX)
    try:
        return [np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in names]
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: a shard cannot be mapped: {error}") from error


def damaged(path: Path) -> UserError:
    return UserError(
        f"{path} is damaged: its content does not match its checksum; run flowrace data encode again"
    )


def _stamp(path: Path) -> list[int]:
    try:
        found = path.stat()
    except OSError as error:
        raise UserError(f"{path} is missing; run flowrace data encode again") from error
    return [found.st_size, found.st_mtime_ns]
