"""Stamps of files: what a cache compares to find out whether a file is the one it has read.

A stamp holds size, modification time, inode and change time. A program can restore size and modification time
of a file that it replaces, but not the change time, which the kernel sets. A file that was changed an instant
ago has no stamp to rely on, because another change in the same tick of the clock would not move it.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

TICK_NS = 100_000_000
"""Nanoseconds after a change during which a stamp cannot be relied on; clocks of file systems tick every 10
ms.
"""
DOUBT = -1
"""Mark of a stamp that cannot be relied on; it equals no other stamp."""


def stamp_of(file: Path) -> list[int]:
    """Return size, modification time, inode and change time of a file, that of its target for a link.

    Raises `OSError` if the file cannot be read.
    """
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns]


def stored(stamp: list[int], read_at_ns: int) -> list[int]:
    """Return a stamp to store with what was read at that time; if in doubt, one that equals no other."""
    return [*stamp, DOUBT] if is_doubtful(stamp[-1], read_at_ns) else stamp


def is_doubtful(changed_ns: int, now_ns: int | None = None) -> bool:
    """Return whether a file changed so recently that another change could leave its stamp as it is."""
    return abs((time.time_ns() if now_ns is None else now_ns) - changed_ns) < TICK_NS


def tree_stamp(root: Path) -> tuple[str, int] | None:
    """Return a hash over the stamps of a file, or of all files of a folder, and the latest change time.

    Linked folders are followed once. Returns None if the root does not exist.
    """
    total, latest = hashlib.sha256(), 0
    try:
        for name, stamp in _stamps(root):
            total.update(f"{name} {stamp}\n".encode(errors="surrogateescape"))
            latest = max(latest, stamp[-1])
    except OSError:
        return None
    return total.hexdigest(), latest


def files_stamp(files: Iterable[Path], base: Path) -> tuple[str, int] | None:
    """Return a hash over name below `base`, size, modification time and inode of files, and the latest change
    time.

    Unlike `tree_stamp`, a change of permissions or of owner leaves it. Returns None if a folder of the files
    changes while they are listed.
    """
    total, latest = hashlib.sha256(), 0
    try:
        for path in sorted(map(str, files)):
            size, modified, inode, changed = _stamp(path)
            name = path.removeprefix(str(base))
            total.update(f"{name} {size} {modified} {inode}\n".encode(errors="surrogateescape"))
            latest = max(latest, changed)
    except OSError:
        return None
    return total.hexdigest(), latest


def _stamps(root: Path) -> Iterator[tuple[str, list[int]]]:
    """Yield the name and the stamp of a root and of all files in it, in order."""
    yield "", stamp_of(root)
    seen: set[tuple[int, int]] = set()
    for folder, inner, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            inner.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        inner.sort()
        for name in sorted(files):
            path = os.path.join(folder, name)
            yield path.removeprefix(str(root)), _stamp(path)


def _stamp(path: str) -> list[int]:
    """Return the stamp of a file in a folder; that of the link itself if its target is missing."""
    try:
        status = os.stat(path)
    except OSError:
        status = os.lstat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns]
