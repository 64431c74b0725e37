"""Guards around a case: time, memory, sockets, files that are left, and numbers that are not finite."""

from __future__ import annotations

import contextlib
import io
import math
import os
import resource
import signal
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import click

from harness.errors import RunStopped, UserError

SECONDS, BYTES = 20, 2 * 2**30
ADDRESSES = 2 * BYTES
"""Bytes of addresses that a case may reserve; threads and allocators reserve more than they use."""
REFUSALS = (UserError, RunStopped, click.ClickException)
CACHE = "cache"


class Broke(AssertionError):
    """A guard that a case broke."""


def run_case(
    files: Mapping[str, bytes], read: Callable[[Path], Iterable[float]], *, valid: bool = False
) -> None:
    """Write files into a new folder `in`, and read them within the guards.

    Raises `Broke`, the exception that is no refusal, or a refusal of `valid` files.
    """
    with tempfile.TemporaryDirectory(prefix="fuzz") as name:
        root = Path(name)
        for file, content in files.items():
            (root / "in" / file).parent.mkdir(parents=True, exist_ok=True)
            (root / "in" / file).write_bytes(content)
        before = _content(root)
        with _cached_in(root / CACHE), _bounded_time(), _bounded_memory(), no_network():
            try:
                with _no_traceback():
                    numbers = list(read(root / "in"))
            except REFUSALS as refusal:
                if valid:
                    raise
                if "\n" in str(refusal).strip():
                    raise Broke(f"the refusal is more than one line: {refusal}") from refusal
                if _content(root) != before:
                    left = sorted(set(_content(root)) ^ set(before)) or "a changed file"
                    raise Broke(f"after a refusal: {left}") from refusal
                return
        if {name: _content(root).get(name) for name in before} != before:
            raise Broke("reading changed a file")
        if wrong := [number for number in numbers if not math.isfinite(number)]:
            raise Broke(f"accepted, but not finite: {wrong[:3]}")


@contextmanager
def _no_traceback() -> Iterator[None]:
    """Raise `Broke` for a traceback on standard error, for example of a library."""
    err = io.StringIO()
    try:
        with contextlib.redirect_stderr(err):
            yield
    finally:
        if "Traceback" in err.getvalue():
            raise Broke(err.getvalue()[-3000:])


def _content(root: Path) -> dict[str, bytes]:
    """Return the files below a folder with their content, except the cache."""
    return {
        str(file.relative_to(root)): file.read_bytes()
        for file in root.rglob("*")
        if file.is_file() and file.relative_to(root).parts[0] != CACHE
    }


@contextmanager
def _cached_in(folder: Path) -> Iterator[None]:
    folder.mkdir()
    with mock.patch.dict(os.environ, {"FLOWRACE_CACHE": str(folder)}):
        yield


@contextmanager
def _bounded_time() -> Iterator[None]:
    def late(*_: object) -> None:
        raise Broke(f"it took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _bounded_memory() -> Iterator[None]:
    """Let larger allocations fail, so that they are a `MemoryError` of the case, and check the peak."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ADDRESSES, hard))
    peak = _peak()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    if _peak() - peak > BYTES:
        raise Broke(f"it took more than {BYTES} bytes")


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextmanager
def no_network() -> Iterator[None]:
    """Raise `Broke` for every address that Python code looks up or connects to, except loopback."""

    def guarded(function: Callable[..., Any], host_of: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            host = host_of(*args)
            if host not in ("localhost", "127.0.0.1", "::1", None) and not isinstance(host, bytes):
                raise Broke(f"it connects to {host}")
            return function(*args, **options)

        return call

    def address(_: socket.socket, where: Any) -> Any:
        return where[0] if isinstance(where, tuple) else None

    with (
        mock.patch.object(socket.socket, "connect", guarded(socket.socket.connect, address)),
        mock.patch.object(socket.socket, "connect_ex", guarded(socket.socket.connect_ex, address)),
        mock.patch.object(socket, "getaddrinfo", guarded(socket.getaddrinfo, lambda host, *_: host)),
    ):
        yield
