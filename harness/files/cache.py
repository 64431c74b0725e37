"""Where things that can be made again are kept: encoders trained here, what is known of large data sets."""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import UserError


def cache_dir(*parts: str) -> Path:
    """A folder of the cache, made when it is not there.

    The cache is `FLOWRACE_CACHE`, else `flowrace` in the platform's cache folder: `XDG_CACHE_HOME` or `~/.cache`
    (`~/Library/Caches` on macOS). Raises `UserError` when it cannot be written.
    """
    folder = _root().joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"cannot write the cache {folder}: {error.strerror}; name another folder in FLOWRACE_CACHE"
        ) from error
    return folder


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Alone among processes with the making of a cached file; waits for whoever makes it now."""
    with open(file.with_name(f"{file.name}.lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _root() -> Path:
    if named := os.environ.get("FLOWRACE_CACHE"):
        return Path(named).expanduser()
    home = Path("~/Library/Caches" if sys.platform == "darwin" else "~/.cache").expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(xdg) if os.path.isabs(xdg) else home) / "flowrace"
