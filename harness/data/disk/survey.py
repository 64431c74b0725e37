"""What data sets on disk share: the way to them, a survey of every image, one shape for all, and the
fingerprint.

A survey decodes every image once, so that a broken one is found by name before anything starts. What it saw
is cached by size and time of change of each file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from harness.config.spec import DataSpec
from harness.data.disk.pixels import decode
from harness.errors import UserError
from harness.files.cache import cache_dir
from harness.files.files import locked, write_atomic

RULES = 2
"""Raised when what is refused changes, so that old surveys are forgotten."""


class FileSurvey(NamedTuple):
    """One image as the survey saw it."""

    sha256: str
    """Of its encoded bytes."""
    width: int
    height: int
    channels: int


class Encoded(NamedTuple):
    """The bytes of one image and what to call it in a message."""

    read: Callable[[], bytes]
    where: str


def data_path(spec: DataSpec, expected: str) -> Path:
    """`data.root` as a path that is there; raises `UserError` saying what was expected."""
    if not spec.root:
        raise UserError(f"data.root is empty, but data.name = '{spec.name}' needs it: expected {expected}")
    path = Path(spec.root).expanduser()
    if not path.exists():
        raise UserError(f"data.root = {spec.root}: no such file or folder; expected {expected}")
    return path


def survey(
    root: Path,
    files: Sequence[Path],
    inside: Callable[[Path], Sequence[Encoded]],
    variant: str = "",
    look: Callable[[Encoded], tuple] | None = None,
) -> list[Any]:
    """Every image of every file, in order, as a `FileSurvey` or as what `look` returns; `inside` lists the
    images of one file.

    Only files whose size or time of change is not as in the cache are read; `variant` keeps apart what is
    seen differently. Raises `UserError` naming the first file that is not there, or the first broken image.
    """
    key = hashlib.sha256(f"{RULES}\n{root.resolve()}\n{variant}".encode()).hexdigest()[:16]
    store = cache_dir("surveys") / f"{key}.json"
    with locked(store):
        known = _read(store)
        stamps = {file: _stamp(file) for file in files}
        names = {file: str(file.relative_to(root)) for file in files}
        stale = [file for file in files if known.get(names[file], {}).get("stamp") != stamps[file]]
        for file, seen in zip(stale, _look(stale, inside, look or _see), strict=True):
            known[names[file]] = {"stamp": stamps[file], "images": seen}
        if stale:
            _write(store, {names[file]: known[names[file]] for file in files})
    found = [seen for file in files for seen in known[names[file]]["images"]]
    return found if look else [FileSurvey(*seen) for seen in found]


def common_shape(
    spec: DataSpec, seen: Sequence[FileSurvey], where: Callable[[int], str]
) -> tuple[int, int, int]:
    """(channels, height, width) for all images; colour when any has colour and `data.channels` leaves it
    open.

    Raises `UserError` for sizes that differ while `data.resolution` is not set.
    """
    channels = spec.channels or max(s.channels for s in seen)
    if spec.resolution:
        return channels, spec.resolution, spec.resolution
    first = seen[0]
    for number, other in enumerate(seen):
        if (other.width, other.height) != (first.width, first.height):
            raise UserError(
                f"{where(number)} is {other.width}x{other.height} pixels, but {where(0)} is {first.width}x{first.height}; "
                "set data.resolution, as in --set data.resolution=32"
            )
    return channels, first.height, first.width


def fingerprint(images: Iterable[str], labels: Iterable[int]) -> str:
    """16 hex digits over the images' hashes and labels, in order."""
    total = hashlib.sha256()
    for sha256, label in zip(images, labels, strict=True):
        total.update(f"{sha256} {label}\n".encode())
    return total.hexdigest()[:16]


def _look(
    files: Sequence[Path], inside: Callable[[Path], Sequence[Encoded]], look: Callable[[Encoded], tuple]
) -> Iterable[list[tuple]]:
    """The images of each file; decoding runs on all cores (Pillow lets go of the interpreter)."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), 1024):
            lists = [inside(file) for file in files[start : start + 1024]]
            seen = pool.map(look, [encoded for images in lists for encoded in images])
            for images in lists:
                yield [next(seen) for _ in images]


def _stamp(file: Path) -> list[int]:
    """Size and time of change."""
    try:
        found = file.stat()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; replace or remove it") from error
    return [found.st_size, found.st_mtime_ns]


def _see(encoded: Encoded) -> FileSurvey:
    content = encoded.read()
    image = decode(content, encoded.where)
    return FileSurvey(hashlib.sha256(content).hexdigest(), *image.size, len(image.getbands()))


def _write(store: Path, known: dict[str, Any]) -> None:
    """JSON below its own checksum."""
    body = json.dumps(known, separators=(",", ":")).encode()
    try:
        write_atomic(store, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    except OSError as error:
        raise UserError(
            f"cannot write the cache {store}: {error.strerror}; free the disk or set FLOWRACE_CACHE"
        ) from error


def _read(store: Path) -> dict[str, Any]:
    """What is known; nothing when it is absent or damaged, and so everything is looked at again."""
    if not store.exists():
        return {}
    checksum, _, body = store.read_bytes().partition(b"\n")
    return json.loads(body) if checksum == hashlib.sha256(body).hexdigest().encode() else {}
