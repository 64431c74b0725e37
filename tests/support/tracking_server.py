"""A real tracking server for tests: `mlflow server` on loopback, its store in PostgreSQL, each a process that
can be killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

USER = "postgres"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """Start a database server in a folder and yield the URI of its database; skip without PostgreSQL."""
    programs = _programs()
    as_user = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        if shutil.which("runuser") is None:
            pytest.skip("PostgreSQL cannot run as root, and there is no runuser")
        as_user = ["runuser", "-u", USER, "--"]
        for parent in (folder, *folder.parents[:-2]):
            parent.chmod(parent.stat().st_mode | 0o055)
        shutil.chown(folder, USER)
    port, data = free_port(), folder / "data"
    subprocess.run(
        [*as_user, programs / "initdb", "-D", data, "-U", USER, "--auth=trust", "--no-sync"],
        check=True,
        capture_output=True,
    )
    settings = ("-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}")
    with _process([*as_user, programs / "postgres", "-D", data, "-p", str(port), *settings], folder / "log"):
        _wait(lambda: _answers(port), "PostgreSQL", folder / "log")
        ready = [programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port), "-q", "-t", "60"]
        _wait(lambda: subprocess.run(ready).returncode == 0, "PostgreSQL", folder / "log")
        yield f"postgresql://{USER}@127.0.0.1:{port}/postgres"


@dataclass
class Server:
    """`mlflow server` over a database; a killed one may be started again in its place."""

    database: str
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        places = [
            "--backend-store-uri",
            self.database,
            "--artifacts-destination",
            str(self.folder / "artifacts"),
        ]
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                [*command, *places, "--workers", "2"], stdout=log, stderr=log, start_new_session=True
            )
        _wait(self._healthy, "mlflow server", self.folder / "server.log")

    def kill(self) -> None:
        """SIGKILL to it and all its workers."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False


def _programs() -> Path:
    found = [
        Path(place).parent for place in [shutil.which("postgres")] if place and not Path(place).is_symlink()
    ]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in found:
        if (folder / "initdb").exists():
            return folder
    pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")


@contextmanager
def _process(command: list[object], log: Path) -> Iterator[None]:
    with open(log, "ab") as file:
        process = subprocess.Popen(list(map(str, command)), stdout=file, stderr=file, start_new_session=True)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=60)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait(ready, what: str, log: Path) -> None:
    """Until it answers; what it printed when it does not."""
    import time

    end = time.monotonic() + 300
    while not ready():
        if time.monotonic() > end:
            pytest.fail(f"{what} did not start: {log.read_text()[-2000:]}")
        time.sleep(0.1)
