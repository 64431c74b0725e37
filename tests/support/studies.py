"""Commands on studies as processes, which tests kill."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.runs import TINY


def start_study(study: Path, out: Path, name: str = "sweep") -> subprocess.Popen[bytes]:
    """Start `flowrace sweep`, or another command, on a study of tiny runs."""
    settings = [word for setting in TINY for word in ("--set", setting)]
    flags = ["--out", str(out), "--slots", "2", "--no-track", "--no-report", "--json", *settings]
    command = [sys.executable, "-m", "harness.cli.main", name, str(study), *flags]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
