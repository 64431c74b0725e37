"""Locks and atomic writes, for files that several processes share and that a kill must not tear."""

from __future__ import annotations

import codecs
import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from harness.errors import UserError
from harness.files.parse import parse_toml

TRIES, PAUSE = 20, 0.01
"""Number of attempts to take a lock, because `holder` briefly takes it too, and the pause between them in
seconds."""
TAIL_BYTES = 16_384
"""Default size of `read_tail`: a few dozen lines."""
PROBED_BYTES = 64
"""Bytes of a text that are looked at to recognise UTF-16 without a mark."""


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the lock of a shared file (`<name>.lock` next to it); wait for another process that holds it."""
    with open(file.with_name(f"{file.name}.lock"), "a", opener=no_link) as lock:
        lock_file(lock)
        yield


@contextlib.contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Hold a lock file, and remove it at the end; wait for another process that holds it."""
    while True:
        # It is closed below.
        file = open(lock, "a", opener=no_link)  # noqa: SIM115
        lock_file(file)
        # The previous holder may have removed the file between our open and our lock.
        if os.fstat(file.fileno()).st_nlink > 0:
            break
        file.close()
    with file:
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextlib.contextmanager
def held(lock: Path, what: str) -> Iterator[None]:
    """Hold a lock file as `take_lock` does, and remove it at the end."""
    with take_lock(lock, what):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def take_lock(lock: Path, what: str) -> IO[str]:
    """Return an open lock file that names this process; closing it releases the lock.

    Raises `UserError` if another process holds it; the error names `what` and the holder.
    """
    for _ in range(TRIES):
        # The caller closes it.
        file = open(lock, "a+", opener=no_link)  # noqa: SIM115
        # The previous holder may have removed the file between our open and our lock.
        if try_lock_file(file) and os.fstat(file.fileno()).st_nlink > 0:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            return file
        file.close()
        time.sleep(PAUSE)
    raise UserError(f"{what} is in use by {holder(lock) or 'another process'}; wait for it or stop it first")


def holder(lock: Path) -> str | None:
    """Return the text of a held lock file, which names its holder; None if it is not held."""
    try:
        with open(lock) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "another process"
    except OSError:
        pass
    return None


def lock_file(file: IO[Any]) -> None:
    """Lock an open file against other processes, and wait for it; closing the file releases the lock."""
    fcntl.flock(file, fcntl.LOCK_EX)


def try_lock_file(file: IO[Any]) -> bool:
    """Lock an open file as `lock_file` does and return True; return False if another process holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def no_link(path: str, flags: int) -> int:
    """Open a file unless its name is a link; an `opener` for files that are written in place.

    A folder from a stranger may hold a link to any file of the user. Raises OSError for a link.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP and os.path.islink(path):
            reason = "it is a link, which is not written; put the file itself in its place"
            raise OSError(errno.ELOOP, reason, path) from error
        raise


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that at every instant it is absent, old or complete."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path whose file replaces `path` at the end: fsync, rename, fsync of the folder.

    At every instant `path` is absent, old or complete. After an error it is unchanged, and the temporary file
    is removed.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        # Someone else's link under this name would lead the writer to another file.
        if temporary.is_symlink():
            temporary.unlink()
        yield temporary
        with open(temporary, "rb+") as file:
            sync_file(file)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_path(path.parent)


def write_fully(file: IO[bytes], content: bytes) -> None:
    """Write all bytes in one call.

    Raises OSError if only a part was written, which an unbuffered file on a full disk reports by no error.
    """
    if file.write(content) != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def content_of(file: Path) -> bytes:
    """Return the bytes of a file; empty without one. Raises `UserError` if it cannot be read."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error


def complete_lines(content: bytes) -> bytes:
    """Return the lines of a file without an incomplete last one, which a killed writer leaves."""
    return content[: content.rfind(b"\n") + 1]


def cut_torn_line(file: IO[bytes]) -> bytes:
    """Remove an incomplete last line, which a killed writer leaves, from an open file; return the others."""
    file.seek(0)
    content = file.read()
    complete = complete_lines(content)
    if complete != content:
        file.truncate(len(complete))
    return complete


def sync_file(file: IO[Any]) -> None:
    """Flush an open file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_path(path: Path) -> None:
    """Flush a file that any process wrote to the disk, or a folder, so that a rename in it survives a power
    cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """Raise `UserError` that names the place if a write inside fails, for example on a full disk."""
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


def read_text(path: Path, kind: str = "text") -> str:
    """Return the text of a UTF-8 file, with or without a byte order mark.

    Raises `UserError` if it cannot be read, or is in another encoding; `kind` is what the file should be.
    """
    try:
        return decode_text(path, path.read_bytes(), kind)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def decode_text(path: Path, content: bytes, kind: str = "text") -> str:
    """Return the text of a file's bytes; see `read_text`."""
    if encoding := _wide_encoding(content):
        raise UserError(
            f"{path} is text in {encoding}; save it as UTF-8, for example: iconv -f {encoding} -t UTF-8 "
            f"{path} > utf8{path.suffix}"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not {kind}: byte 0x{content[error.start]:02x} at position {error.start} is not "
            "UTF-8; save it as UTF-8"
        ) from error


def _wide_encoding(content: bytes) -> str | None:
    """Return UTF-16 or UTF-32 if the bytes begin with its mark, or if every second byte is 0."""
    if content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "UTF-32"
    halves = [content[start:PROBED_BYTES:2] for start in (0, 1)] if len(content) > 3 else []
    unmarked = any(half and not any(half) for half in halves)
    return "UTF-16" if unmarked or content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else None


# Any: the values of a TOML file.
def read_toml(path: Path) -> dict[str, Any]:
    """Return the table of a TOML file; raises `UserError` if it cannot be read."""
    try:
        return parse_toml(read_text(path, "TOML"))
    except ValueError as error:
        raise UserError(f"{path} is not TOML: {error}") from error
