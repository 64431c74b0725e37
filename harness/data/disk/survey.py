"""The survey of a data set on disk: hash and size of every item, a common shape, and the fingerprint.

A survey decodes every item once, so that a broken one raises an error before a run starts. The results are
cached by the stamp of each file: size, modification time, inode and change time.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from harness.config.data_spec import DataSpec
from harness.data.disk.pixels import decode
from harness.data.disk.survey_store import Entries, Entry, rewritten
from harness.errors import UserError
from harness.files.cache import cache_dir
from harness.files.files import locked
from harness.files.progress import progress_bar
from harness.files.stamps import stamp_of, stored

RULES = 3
"""Version of the checks: increase it when they change, to invalidate cached surveys."""
CHUNK = 1024
"""Files that are read before their surveys are written."""


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
    origin = f"; the data are {spec.origin}" if spec.origin else ""
    if not spec.root:
        raise UserError(
            f"data.root is empty, but data.name = '{spec.name}' requires it; set it to {expected}{origin}"
        )
    path = Path(spec.root).expanduser()
    if not path.exists():
        raise UserError(f"data.root = {spec.root}: no such file or folder; expected {expected}{origin}")
    return path


def survey(
    root: Path,
    names: Sequence[str],
    inside: Callable[[str], Sequence[Encoded]],
    variant: str = "",
    inspect: Callable[[Encoded], tuple[Any, ...]] | None = None,
    # Any: rows of JSON, whose values depend on `inspect`.
) -> list[Any]:
    """Return the survey of every item of every file, in order: the result of `inspect`, or a `FileSurvey`.

    `names` are relative to the root, and `inside` lists the items of one file. Only files whose stamp
    (harness/files/stamps.py) differs from the cache are read; `variant` separates caches of different
    inspections. Raises `UserError` naming the first file that is missing, or the first broken item.
    """
    key = hashlib.sha256(f"{RULES}\n{root.resolve()}\n{variant}".encode()).hexdigest()[:16]
    store = cache_dir("surveys") / f"{key}.jsonl"
    order = sorted(range(len(names)), key=names.__getitem__)
    found: list[Any] = [None] * len(names)
    with locked(store):
        if not _all_cached(root, names, order, store, found):
            _survey(root, names, order, store, found, inside, inspect or _inspect_image)
    return [item if inspect else FileSurvey(*item) for items in found for item in items]


def survey_files(
    root: Path,
    files: Sequence[Path],
    inside: Callable[[Path], Sequence[Encoded]],
    variant: str = "",
    inspect: Callable[[Encoded], tuple[Any, ...]] | None = None,
    # Any: the results of `inspect`.
) -> list[Any]:
    """Return the survey of every item of files that hold several; see `survey`."""
    names = [str(file.relative_to(root)) for file in files]
    return survey(root, names, lambda name: inside(root / name), variant, inspect)


def _all_cached(
    root: Path, names: Sequence[str], order: Sequence[int], store: Path, found: list[Any]
) -> bool:
    """Fill in cached surveys; return whether there is one for every file."""
    cached = Entries(store)
    for index in order:
        found[index] = cached.items(names[index], _stamp(root, names[index]))
        if found[index] is None:
            return False
    return True


def _survey(
    root: Path,
    names: Sequence[str],
    order: Sequence[int],
    store: Path,
    found: list[Any],
    inside: Callable[[str], Sequence[Encoded]],
    inspect: Callable[[Encoded], tuple[Any, ...]],
) -> None:
    """Fill in the surveys of all files, and write them to the cache.

    Threads use all cores, because the decoders release Python's global lock.
    """
    cached = Entries(store)
    with (
        rewritten(store) as write,
        ThreadPoolExecutor() as pool,
        progress_bar(len(names), "reading the data", unit="files") as advance,
    ):
        for start in range(0, len(order), CHUNK):
            chunk = order[start : start + CHUNK]
            stamps = {index: _stamp(root, names[index]) for index in chunk}
            now = time.time_ns()
            for index in chunk:
                found[index] = cached.items(names[index], stamps[index])
            stale = [index for index in chunk if found[index] is None]
            for group in _groups(stale, lambda index: inside(names[index])):
                inspected = pool.map(inspect, [encoded for _, items in group for encoded in items])
                for index, items in group:
                    found[index] = [list(next(inspected)) for _ in items]
            for index in chunk:
                write(Entry(names[index], stored(stamps[index], now), found[index]))
            advance(len(chunk))


def _groups(
    stale: Sequence[int], inside: Callable[[int], Sequence[Encoded]]
) -> Iterator[list[tuple[int, Sequence[Encoded]]]]:
    """Yield files with their items, a limited number of items at a time, which are in memory together."""
    group: list[tuple[int, Sequence[Encoded]]] = []
    for index in stale:
        group.append((index, inside(index)))
        if sum(len(items) for _, items in group) >= CHUNK:
            yield group
            group = []
    if group:
        yield group


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


def _stamp(root: Path, name: str) -> list[int]:
    try:
        return stamp_of(root / name)
    except OSError as error:
        raise UserError(f"cannot read {root / name}: {error.strerror}; replace or remove it") from error


def _inspect_image(encoded: Encoded) -> FileSurvey:
    content = encoded.read()
    image = decode(content, encoded.where)
    return FileSurvey(hashlib.sha256(content).hexdigest(), *image.size, len(image.getbands()))
