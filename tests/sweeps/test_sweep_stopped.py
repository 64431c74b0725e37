"""A sweep that is stopped by a signal or loses its terminal, with stub runs that wait."""

from __future__ import annotations

import os
import pty
import select
import signal
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.records.record import Record, lock_holder
from sweeps.cli.sweep import sweep
from tests.support.forked import (
    command_in_child,
    exit_code,
    flowrace,
    has_ended,
    with_own_output,
    work_and_exit,
)
from tests.support.waiting import wait_until
from tests.sweeps.conftest import planned_runs, starts

SWEEP = ("--no-track", "--no-report")


def test_ctrl_c_stops_at_a_checkpoint_and_the_same_command_resumes(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB", "wait")
    output = tmp_path / "output"
    process = command_in_child(["sweep", str(study), "--slots", "2", *SWEEP], output)
    directory = tmp_path / "runs" / "tiny"
    running = [directory / "logs" / f"{planned.id}.log" for planned in planned_runs(study)[:2]]
    wait_until(lambda: all(map(is_waiting, running)) or has_ended(process))
    assert all(map(is_waiting, running)), output.read_text()
    os.kill(process, signal.SIGINT)
    assert exit_code(process) == 130 and "stopped; rerun the same command to resume" in output.read_text()
    assert [log.read_text() for log in running] == ["waiting\nstopped by SIGINT\n"] * 2
    assert len(starts(directory)) == 2

    monkeypatch.delenv("STUB")
    again = CliRunner().invoke(sweep, [str(study), "--slots", "2", *SWEEP])
    assert again.exit_code == 0, again.output
    for planned in planned_runs(study):
        record = Record(directory / planned.id)
        assert record.status == "done" and [e["step"] for e in record.of("train")] == [1, 2, 3, 4, 5, 6]
    assert sorted(starts(directory).values()) == [1, 1, 2, 2]


@pytest.mark.parametrize("hangup", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_closing_the_terminal_stops_runs_at_a_checkpoint(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangup: bool
) -> None:
    """A closed window sends a hang-up. Without it (`disown`), the sweep runs silently to its end."""
    monkeypatch.setenv("STUB", "wait")
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL if hangup else signal.SIG_IGN)
        words = ["sweep", str(study), "--slots", "4", *SWEEP]
        work_and_exit(partial(with_own_output, partial(flowrace, words)))
    directory = tmp_path / "runs" / "tiny"
    logs = [directory / "logs" / f"{planned.id}.log" for planned in planned_runs(study)]
    while not all(map(is_waiting, logs)):
        read(terminal)
    os.close(terminal)
    for planned in () if hangup else planned_runs(study):
        run = int(lock_holder(directory / planned.id).split()[1])
        os.kill(run, signal.SIGTERM)
        # The process exists until the sweep has waited for it.
        wait_until(lambda run=run: not Path(f"/proc/{run}").exists())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (130 if hangup else 1)
    assert [log.read_text() for log in logs] == ["waiting\nstopped by SIGTERM\n"] * 4


def is_waiting(log: Path) -> bool:
    return log.exists() and "waiting" in log.read_text()


def read(terminal: int) -> None:
    """Read the output, so that the terminal's buffer does not fill up."""
    if select.select([terminal], [], [], 0.02)[0]:
        os.read(terminal, 65_536)
