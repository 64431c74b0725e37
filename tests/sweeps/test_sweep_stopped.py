"""A sweep that is stopped by a signal or loses its terminal, with stub runs that wait."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.records.record import Record, lock_holder
from sweeps.cli.sweep import sweep
from tests.sweeps.conftest import STUB, planned_runs, starts

INTERRUPTED = """if True:
    import sys
    import sweeps.launch.runner
    from harness.cli.main import main
    stub = sys.argv.pop(1)
    sweeps.launch.runner.run_command = lambda spec, out: (sys.executable, stub, str(spec), str(out))
    main()
"""


def test_ctrl_c_stops_at_a_checkpoint_and_the_same_command_resumes(study: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        INTERRUPTED,
        STUB,
        "sweep",
        study,
        "--slots",
        "2",
        "--no-track",
        "--no-report",
    ]
    process = subprocess.Popen(
        command, env={**os.environ, "STUB": "wait"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    directory = tmp_path / "runs" / "tiny"
    running = [directory / "logs" / f"{planned.id}.log" for planned in planned_runs(study)[:2]]
    while not all(log.exists() and "waiting" in log.read_text() for log in running):
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped; rerun the same command to resume" in errors
    assert [log.read_text() for log in running] == ["waiting\nstopped by SIGINT\n"] * 2
    assert len(starts(directory)) == 2

    again = CliRunner().invoke(sweep, [str(study), "--slots", "2", "--no-track", "--no-report"])
    assert again.exit_code == 0, again.output
    for planned in planned_runs(study):
        record = Record(directory / planned.id)
        assert record.status == "done" and [e["step"] for e in record.of("train")] == [1, 2, 3, 4, 5, 6]
    assert sorted(starts(directory).values()) == [1, 1, 2, 2]


@pytest.mark.parametrize("hangup", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_closing_the_terminal_stops_runs_at_a_checkpoint(study: Path, tmp_path: Path, hangup: bool) -> None:
    """A closed window sends a hang-up. Without it (`disown`), the sweep runs silently to its end."""
    command = [
        sys.executable,
        "-c",
        INTERRUPTED,
        str(STUB),
        "sweep",
        str(study),
        "--slots",
        "4",
        "--no-track",
    ]
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL if hangup else signal.SIG_IGN)
        os.execve(sys.executable, [*command, "--no-report"], {**os.environ, "STUB": "wait"})
    directory = tmp_path / "runs" / "tiny"
    logs = [directory / "logs" / f"{planned.id}.log" for planned in planned_runs(study)]
    while not all(log.exists() and "waiting" in log.read_text() for log in logs):
        read(terminal)
    os.close(terminal)
    for planned in () if hangup else planned_runs(study):
        run = int(lock_holder(directory / planned.id).split()[1])
        os.kill(run, signal.SIGTERM)
        # The process exists until the sweep has waited for it.
        while Path(f"/proc/{run}").exists():
            pass
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (130 if hangup else 1)
    assert [log.read_text() for log in logs] == ["waiting\nstopped by SIGTERM\n"] * 4


def read(terminal: int) -> None:
    """Read the output, so that the terminal's buffer does not fill up."""
    if select.select([terminal], [], [], 0.02)[0]:
        os.read(terminal, 65_536)
