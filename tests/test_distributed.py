"""Two processes equal one: the same draws bit for bit (test_train), the loss to 1e-6."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from harness.record import Record
from tests.runs import TINY, losses, tiny, trained


@pytest.mark.parametrize("method", ["flow", "repa", "self_flow"])
def test_two_processes_equal_one(tmp_path: Path, method: str) -> None:
    spec = (f"method.name={method}", *(["method.encoder.name=random:tiny"] if method == "repa" else []))
    one = trained(tiny(*spec), tmp_path / "one")
    words = [word for override in (*TINY, *spec) for word in ("--set", override)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        f"--master-port={port}",
        "--master-addr=127.0.0.1",
    ]
    command = [
        sys.executable,
        *launch,
        "-m",
        "harness.cli",
        "run",
        "digits",
        *words,
        "--out",
        str(tmp_path / "two"),
        "--no-track",
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    two = Record(tmp_path / "two" / one.id)
    assert losses(two) == pytest.approx(losses(one), rel=1e-6)
    assert two.of("train")[-1]["flops"] == one.of("train")[-1]["flops"]
    assert two.environment[0]["devices"] == 2
