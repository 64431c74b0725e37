"""Files that several processes share: locks that name their holder, atomic writes, TOML."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from harness.errors import UserError

TRIES, PAUSE = 20, 0.01
"""A reader who asks for the holder has the lock for a moment, in seconds."""
TAIL_BYTES = 16_384
"""How much `read_tail` reads by default: some dozens of lines."""


@contextlib.contextmanager
def held(lock: Path, what: str) -> Iterator[None]:
    """Inside: `take_lock`. The file is removed at the end."""
    with take_lock(lock, what):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def take_lock(lock: Path, what: str) -> IO[str]:
    """A lock file, held until it is closed; raises `UserError` where another process has it, and names that."""
    for _ in range(TRIES):
        file = open(lock, "a+")  # noqa: SIM115 (held until the caller closes it)
        if _taken(file):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            return file
        file.close()
        time.sleep(PAUSE)
    raise UserError(f"{what} is in use by {holder(lock) or 'another process'}; wait for it or stop it first")


def holder(lock: Path) -> str | None:
    """Who holds a lock file (its text), or None when nobody does."""
    try:
        with open(lock) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "another process"
    except OSError:
        pass
    return None


def _taken(file: IO[str]) -> bool:
    """Whether the lock is ours now, and its file not one that whoever held it has just removed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(file.fileno()).st_nlink > 0


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that at every instant it is absent, old or complete: temporary name, fsync, rename, fsync."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make a rename in this directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """A disk that is full, or a place that may not be written, becomes a `UserError` that names the place."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {place}: {error.strerror}") from error


def read_tail(path: Path, size: int = TAIL_BYTES) -> bytes:
    """Return the last bytes of a file that may be growing; empty if it cannot be read."""
    try:
        with open(path, "rb") as content:
            content.seek(max(0, content.seek(0, os.SEEK_END) - size))
            return content.read()
    except OSError:
        return b""


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
