"""The cache folder, for files that can be recomputed: trained encoders, surveys of large data sets."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from harness.errors import UserError


def cache_dir(*parts: str) -> Path:
    """Return a folder of the cache; create it if necessary, for this user alone.

    The cache is `FLOWRACE_CACHE`, else `flowrace` in the platform's cache folder: `XDG_CACHE_HOME` or
    `~/.cache` (`~/Library/Caches` on macOS). Raises `UserError` if it cannot be written.
    """
    folder = cache_root().joinpath(*parts)
    try:
        cache_root().mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"cannot write the cache {folder}: {error.strerror}; set FLOWRACE_CACHE to another folder"
        ) from error
    return folder


def cache_root() -> Path:
    """Return the place of the cache, which may not exist yet."""
    if named := os.environ.get("FLOWRACE_CACHE"):
        return Path(named).expanduser()
    home = Path("~/Library/Caches" if sys.platform == "darwin" else "~/.cache").expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(xdg) if os.path.isabs(xdg) else home) / "flowrace"
