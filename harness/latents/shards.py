"""The files of encoded moments: manifest, index, and shards, which are checked and memory-mapped.

latents.json         source and codec, and the sha256 of every file; written last, it marks a complete folder
index.npz            labels int64 (N,), and the keys of the source's split as bytes with their ends (N,)
shard-00000.npy ...  mean and standard deviation (rows, copies, 2, c, *places); copy 1 is of mirrored samples

Captions are in further files (captions.py).
"""

from __future__ import annotations

import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.errors import UserError
from harness.files.cache import cache_dir
from harness.files.files import locked, write_atomic
from harness.files.parse import parse_json
from harness.files.stamps import stamp_of, stored
from harness.latents.manifest import check_fields
from metrics.files.hashing import sha256_of

FORMAT, MANIFEST, INDEX = "flowrace-latents-1", "latents.json", "index.npz"
SHARD = "shard-"
PLACES = ("root", "weights")
"""Fields of a manifest that hold locations and do not affect its content."""


class Index(NamedTuple):
    """The labels of all samples, and their keys in one string of bytes."""

    labels: np.ndarray
    keys: bytes
    ends: np.ndarray
    """(N,) end of each key."""

    def key(self, number: int) -> bytes:
        return self.keys[self.ends[number - 1] if number else 0 : self.ends[number]]


def shard_name(number: int) -> str:
    return f"{SHARD}{number:05d}.npy"


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read latents.json. Raises `UserError` if the folder holds no encoded moments, or incomplete ones."""
    try:
        manifest = parse_json((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise UserError(
            f"data.root = {folder} has no {MANIFEST}; expected a folder that flowrace data encode or "
            "flowrace data import has completed"
        ) from error
    except ValueError as error:
        raise UserError(f"{folder / MANIFEST} is damaged; run flowrace data encode again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(
            f"{folder / MANIFEST} does not have the format {FORMAT}; run flowrace data encode again"
        )
    check_fields(manifest, str(folder / MANIFEST))
    return manifest


def fingerprint(manifest: dict[str, Any]) -> str:
    """Return 16 hex digits of a sha256 over a manifest without its locations."""
    return hashlib.sha256(json.dumps(without_places(manifest), sort_keys=True).encode()).hexdigest()[:16]


# Any: a value of JSON.
def without_places(value: Any) -> Any:
    """Return a manifest without the fields in PLACES, at any depth."""
    if isinstance(value, dict):
        return {name: without_places(item) for name, item in value.items() if name not in PLACES}
    return value


def check(folder: Path, manifest: dict[str, Any]) -> None:
    """Compare every file with its sha256, except those that passed before and have the same stamp.

    Raises `UserError` naming the first file that is missing or damaged.
    """
    store = cache_dir("latents") / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]}.json"
    with locked(store):
        known = parse_json(store.read_bytes()) if store.exists() else {}
        files = _files(folder, manifest)
        stamps = {name: [_stamp(path), sha256] for name, (path, sha256) in files.items()}
        now = time.time_ns()
        stale = [name for name, stamp in stamps.items() if known.get(name) != stamp]
        with ThreadPoolExecutor() as pool:
            for name, sha256 in zip(stale, pool.map(lambda n: sha256_of(files[n][0]), stale), strict=True):
                if sha256 != files[name][1]:
                    raise damaged(files[name][0])
        if stale:
            kept = {name: known[name] for name in stamps if name not in stale}
            kept |= {name: [stored(stamps[name][0], now), stamps[name][1]] for name in stale}
            write_atomic(store, json.dumps(kept).encode())


def _files(folder: Path, manifest: dict[str, Any]) -> dict[str, tuple[Path, str]]:
    """Return path and sha256 of every file of a manifest, those of linked records included."""
    linked = manifest.get("linked", {"root": "", "files": {}})
    own = {name: (folder / name, sha256) for name, sha256 in manifest["files"].items()}
    return own | {f"linked {n}": (Path(linked["root"]) / n, sha256) for n, sha256 in linked["files"].items()}


def read_index(folder: Path) -> Index:
    with np.load(folder / INDEX, allow_pickle=False) as index:
        return Index(index["labels"], index["keys"].tobytes(), index["ends"])


def open_shards(folder: Path, manifest: dict[str, Any]) -> list[np.ndarray]:
    """Return the shards in order, memory-mapped."""
    names = sorted(name for name in manifest["files"] if name.startswith(SHARD))
    try:
        return [np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in names]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: a shard cannot be memory-mapped: {error}; run flowrace data encode again"
        ) from error


def damaged(path: Path) -> UserError:
    return UserError(
        f"{path} is damaged: its content does not match its checksum; run flowrace data encode again, "
        "or flowrace data import"
    )


def _stamp(path: Path) -> list[int]:
    try:
        return stamp_of(path)
    except OSError as error:
        raise UserError(
            f"{path} is missing; run flowrace data encode again, or flowrace data import"
        ) from error
