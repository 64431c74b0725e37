"""Commands on studies as processes, which tests kill."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.support.runs import TINY

WAIT, TRIES = 600, 12


def start_study(study: Path, out: Path, name: str = "sweep") -> subprocess.Popen[bytes]:
    """Start `flowrace sweep`, or another command, on a study of tiny runs."""
    return start_command(name, study, out, TINY, "--no-track", "--no-report")


def start_command(
    name: str, study: Path, out: Path, settings: Iterable[str], *flags: str
) -> subprocess.Popen[bytes]:
    """Start a command on a study with two slots; its output is added to `log_of(out)`."""
    words = [word for setting in settings for word in ("--set", setting)]
    options = ["--out", str(out), "--slots", "2", "--json", *flags, *words]
    command = [sys.executable, "-m", "harness.cli.main", name, str(study), *options]
    with open(log_of(out), "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def log_of(out: Path) -> Path:
    """Return the file with the output of the commands on a study."""
    return out.parent / f"{out.name}.log"


def finish_study(
    start: Callable[[], subprocess.Popen[bytes]],
    out: Path,
    running: subprocess.Popen[bytes] | None = None,
    tries: int = TRIES,
) -> None:
    """Wait until a command ends with exit code 0, and start it again if not.

    Fails with its output after `tries`. A killed worker is a failure of its command.
    """
    for _ in range(tries):
        running = running or start()
        try:
            if running.wait(WAIT) == 0:
                return
        except subprocess.TimeoutExpired:
            running.terminate()
            break
        running = None
    raise AssertionError(log_of(out).read_text(errors="replace")[-5000:])
