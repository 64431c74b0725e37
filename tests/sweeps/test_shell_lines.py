"""Shell lines of SLURM scripts: no word of a task, an option or a folder is run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from harness.errors import UserError
from sweeps.launch import slurm
from sweeps.launch.base import Resources


def test_shell_lines_of_slurm_run_no_part_of_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The submitted script is run by bash, with `echo` as the task."""
    pytest.importorskip("submitit")
    folder, programs = tmp_path / "a b$(touch owned);`touch owned`", tmp_path / "bin"
    programs.mkdir()
    for name, line in {
        "srun": "exit 0",
        "sbatch": f'cp "$1" {tmp_path}/script; echo "Submitted batch job 1"',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    folder.mkdir()
    words = ["echo", "$(touch owned)", "`touch owned`", "a;touch owned", "'", '"', "two words", "$HOME", "\n"]
    options = {"comment": "x; touch owned", "reservation": "$(touch owned)"}
    executor = slurm._executor(folder, Resources(), options)
    slurm._send(executor, "name$(touch owned)", words, 1, None)
    script = (tmp_path / "script").read_text()
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, env={"PATH": os.environ["PATH"]}
    )
    assert done.stdout.startswith(" ".join(words[1:])), (script, done)
    assert not list(tmp_path.rglob("owned"))


def test_setting_with_a_line_end_is_refused(tmp_path: Path) -> None:
    """The shell would run what follows."""
    with pytest.raises(UserError, match="has a line end; a setting of SLURM is one line"):
        slurm._executor(tmp_path, Resources(), {"comment": "x\ntouch owned"})
    with pytest.raises(UserError, match="has a line end"):
        slurm._executor(tmp_path / "a\ntouch owned", Resources(), {})
