"""The survey of a data set on disk: hash and size of every item, a common shape, and the fingerprint.

A survey decodes every item once, so that a broken one raises an error before a run starts. The results are
cached by the stamp of each file: size, modification time, inode and change time.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from harness.config.spec import DataSpec
from harness.data.disk.pixels import decode
from harness.errors import UserError
from harness.files.cache import cache_dir
from harness.files.files import locked, write_atomic
from harness.files.progress import progress_bar
from harness.files.stamps import stamp_of, stored

CHUNK = 1024
"""Number of files or of items that are listed at a time."""
RULES = 2
"""Version of the checks: increase it when they change, to invalidate cached surveys."""


class FileSurvey(NamedTuple):
    """The survey of one image."""

    sha256: str
    """Hash of the encoded bytes."""
    width: int
    height: int
    channels: int


class Encoded(NamedTuple):
    """The encoded bytes of one item, and its name in messages."""

    read: Callable[[], bytes]
    where: str


def data_path(spec: DataSpec, expected: str) -> Path:
    """Return `data.root` as an existing path. Raises `UserError` that describes what was expected."""
    if not spec.root:
        raise UserError(
            f"data.root is empty, but data.name = '{spec.name}' requires it; set it to {expected}"
        )
    path = Path(spec.root).expanduser()
    if not path.exists():
        raise UserError(f"data.root = {spec.root}: no such file or folder; expected {expected}")
    return path


def survey(
    root: Path,
    files: Sequence[Path],
    inside: Callable[[Path], Sequence[Encoded]],
    variant: str = "",
    inspect: Callable[[Encoded], tuple[Any, ...]] | None = None,
    # Any: rows of JSON, whose values depend on `inspect`.
) -> list[Any]:
    """Return the survey of every item of every file, in order: the result of `inspect`, or a `FileSurvey`.

    `inside` lists the items of one file. Only files whose stamp (harness/files/stamps.py) differs from the
    cache are read; `variant` separates caches of different inspections. Raises `UserError` naming the first
    file that is missing, or the first broken item.
    """
    key = hashlib.sha256(f"{RULES}\n{root.resolve()}\n{variant}".encode()).hexdigest()[:16]
    store = cache_dir("surveys") / f"{key}.json"
    with locked(store):
        known = _read(store)
        stamps = {file: _stamp(file) for file in files}
        names = {file: str(file.relative_to(root)) for file in files}
        now = time.time_ns()
        stale = [file for file in files if known.get(names[file], {}).get("stamp") != stamps[file]]
        with progress_bar(len(stale), f"reading {root.name}") as advance:
            for file, items in zip(stale, _inspect(stale, inside, inspect or _inspect_image), strict=True):
                known[names[file]] = {"stamp": stored(stamps[file], now), "images": items}
                advance(1)
        if stale:
            _write(store, {names[file]: known[names[file]] for file in files})
    items = [item for file in files for item in known[names[file]]["images"]]
    return items if inspect else [FileSurvey(*item) for item in items]


def common_shape(
    spec: DataSpec, surveys: Sequence[FileSurvey], where: Callable[[int], str]
) -> tuple[int, int, int]:
    """Return (channels, height, width) for all images.

    Without `data.channels`, images are colour if any of them is. Raises `UserError` if sizes differ and
    `data.resolution` is not set.
    """
    channels = spec.channels or max(s.channels for s in surveys)
    if spec.resolution:
        return channels, spec.resolution, spec.resolution
    first = surveys[0]
    for number, other in enumerate(surveys):
        if (other.width, other.height) != (first.width, first.height):
            raise UserError(
                f"{where(number)} is {other.width}x{other.height} pixels, but {where(0)} is "
                f"{first.width}x{first.height}; "
                "choose one size, for example --set data.resolution=32"
            )
    return channels, first.height, first.width


def fingerprint(images: Iterable[str], labels: Iterable[int]) -> str:
    """Return 16 hex digits of a sha256 over the hashes and labels of all items, in order."""
    total = hashlib.sha256()
    for sha256, label in zip(images, labels, strict=True):
        total.update(f"{sha256} {label}\n".encode())
    return total.hexdigest()[:16]


def _inspect(
    files: Sequence[Path],
    inside: Callable[[Path], Sequence[Encoded]],
    inspect: Callable[[Encoded], tuple[Any, ...]],
) -> Iterable[list[tuple[Any, ...]]]:
    """Yield the surveys of the items of each file. Threads use all cores, because Pillow releases the GIL."""
    with ThreadPoolExecutor() as pool:
        for lists in _chunks(files, inside):
            surveys = pool.map(inspect, [encoded for images in lists for encoded in images])
            for images in lists:
                yield [next(surveys) for _ in images]


def _chunks(
    files: Sequence[Path], inside: Callable[[Path], Sequence[Encoded]]
) -> Iterator[list[Sequence[Encoded]]]:
    """Yield the items of some files at a time, so that only those of a chunk are in memory."""
    lists: list[Sequence[Encoded]] = []
    items = 0
    for file in files:
        lists.append(inside(file))
        items += len(lists[-1])
        if max(items, len(lists)) >= CHUNK:
            yield lists
            lists, items = [], 0
    if lists:
        yield lists


def _stamp(file: Path) -> list[int]:
    try:
        return stamp_of(file)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; replace or remove it") from error


def _inspect_image(encoded: Encoded) -> FileSurvey:
    content = encoded.read()
    image = decode(content, encoded.where)
    return FileSurvey(hashlib.sha256(content).hexdigest(), *image.size, len(image.getbands()))


def _write(store: Path, known: dict[str, Any]) -> None:
    """Write surveys as JSON below a line with its checksum."""
    body = json.dumps(known, separators=(",", ":")).encode()
    try:
        write_atomic(store, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    except OSError as error:
        raise UserError(
            f"cannot write the cache {store}: {error.strerror}; free the disk or set FLOWRACE_CACHE"
        ) from error


def _read(store: Path) -> dict[str, Any]:
    """Return cached surveys, or none if the cache is missing or damaged."""
    if not store.exists():
        return {}
    checksum, _, body = store.read_bytes().partition(b"\n")
    return json.loads(body) if checksum == hashlib.sha256(body).hexdigest().encode() else {}
