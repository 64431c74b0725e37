"""The SLURM launcher on a private SLURM: a controller and a node daemon, real queues, real signals."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cli.main import cli
from harness.errors import UserError
from harness.records.record import Record, find_records
from sweeps.launch.base import Finished, Resources, Started
from sweeps.launch.handoff import Handoff
from sweeps.launch.slurm import SlurmLauncher
from tests.support.finished_study import finished_study
from tests.sweeps.engines import (
    STUDY,
    TRAINS,
    assert_race_has_the_looks_of_a_local_one,
    assert_same_bits,
    at_work,
    drain,
    job,
    kill,
    logged,
    planned,
    starts,
    sweep,
    until,
)  # fmt: skip
from tests.sweeps.slurm import slurm

pytest.importorskip("submitit")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with slurm(tmp_path_factory.mktemp("slurm")):
        yield


@pytest.fixture
def handoff(cluster: None, tmp_path: Path) -> Handoff:
    (tmp_path / "launch").mkdir()
    return Handoff(tmp_path / "launch", {"ONCE": str(tmp_path / "once")})


def launcher(handoff: Handoff, **options: object) -> SlurmLauncher:
    return SlurmLauncher(handoff, Resources(), every=0.3, **options)


@pytest.mark.slow
def test_array_runs_in_order_and_a_killed_job_is_retried(handoff: Handoff, tmp_path: Path) -> None:
    """Four jobs run one at a time; the second fails, and the last is killed once and requeued alone."""
    once = "import os, pathlib; once = pathlib.Path(os.environ['ONCE'])\n"
    code = f"{once}if not once.exists(): once.touch(); os.kill(os.getpid(), 9)\nprint('done')"
    codes = ["print('hello')", "import sys; sys.exit('broken')", "print('three')", code]
    with launcher(handoff, at_a_time=1) as engine:
        for name, text in zip("abcd", codes, strict=True):
            engine.submit(job(tmp_path, name, text))
        events = drain(engine)
    assert [event.name for event in events if isinstance(event, Started)] == list("abcd")
    ends = {event.name: event.code for event in events if isinstance(event, Finished)}
    assert ends == {"a": 0, "b": 1, "c": 0, "d": 0}
    assert [(tmp_path / f"{name}.log").read_text() for name in "abcd"] == [
        "hello\n", "broken\n", "three\n", "done\n",
    ]  # fmt: skip
    # Nothing was pickled.
    assert not list(handoff.folder.glob("*.pkl"))


@pytest.mark.slow
def test_jobs_of_a_dead_coordinator_are_adopted(handoff: Handoff, tmp_path: Path) -> None:
    waits = (
        "import pathlib, time\nprint('here', flush=True)\n"
        f"while not pathlib.Path({str(tmp_path)!r}, 'go').exists(): time.sleep(0.05)"
    )
    with launcher(handoff, at_a_time=1) as first:
        for name in "ab":
            first.submit(job(tmp_path, name, waits))
        until(lambda: logged(tmp_path, "a", "here"), first)
    with launcher(handoff, at_a_time=1) as second:
        assert [second.holds(name) for name in "abc"] == [True, True, False]
        for name in "abc":
            second.submit(job(tmp_path, name, waits))
        (tmp_path / "go").touch()
        events = drain(second)
    assert {event.name: event.code for event in events if isinstance(event, Finished)} == dict.fromkeys(
        "abc", 0
    )
    assert [(tmp_path / f"{name}.log").read_text() for name in "abc"] == ["here\n"] * 3
    assert handoff.submissions() == {1: ["a", "b"], 2: ["c"]}


@pytest.mark.slow
def test_cancel_removes_waiting_jobs_and_lets_running_ones_write_a_checkpoint(
    handoff: Handoff, tmp_path: Path
) -> None:
    with launcher(handoff, at_a_time=1) as engine:
        for name in "ab":
            engine.submit(job(tmp_path, name, TRAINS))
        until(lambda: logged(tmp_path, "a", "here"), engine)
        engine.cancel()
        events = drain(engine)
    assert Finished("a", 130) in events and {event.name for event in events} == {"a", "b"}
    assert (tmp_path / "a.log").read_text() == "here\ncheckpoint\n" and not (tmp_path / "b.log").exists()
    assert engine.stopped_by == signal.SIGINT


def test_job_ended_by_slurm_has_the_state_in_its_log(handoff: Handoff, tmp_path: Path) -> None:
    with launcher(handoff) as engine:
        engine.submit(job(tmp_path, "a", TRAINS))
        until(lambda: logged(tmp_path, "a", "here"), engine)
        subprocess.run(["scancel", f"--jobname={handoff.label}-1"], check=True)
        assert drain(engine)[-1] == Finished("a", 1)
    assert (tmp_path / "a.log").read_text() == "here\ncheckpoint\nerror: SLURM ended this job: CANCELLED\n"


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"partition": "nowhere"}, "invalid partition"), ({"nonsense": "1"}, "unrecognized option")],
)
def test_rejection_by_slurm_is_a_user_error(
    handoff: Handoff, tmp_path: Path, options: dict[str, str], reason: str
) -> None:
    with (
        pytest.raises(UserError, match=f"(?i)SLURM rejected the jobs: .*{reason}"),
        launcher(handoff, options=options) as engine,
    ):
        engine.submit(job(tmp_path, "a", "pass"))
        engine.poll()


def test_missing_slurm_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no SLURM on this machine"):
        SlurmLauncher(Handoff(tmp_path), Resources())


@pytest.mark.slow
def test_race_has_the_looks_of_a_local_one(cluster: None, tmp_path: Path) -> None:
    flags = ("--launcher", "slurm", "--threads", "1", "--partition", "main")
    assert_race_has_the_looks_of_a_local_one(tmp_path, *flags)


@pytest.mark.slow
def test_disturbed_study_has_the_bits_of_an_undisturbed_one(cluster: None, tmp_path: Path) -> None:
    """One run is killed, one requeued, one preempted by an urgent job, and the coordinator is killed."""
    study, calm, wild = tmp_path / "study.toml", tmp_path / "calm", tmp_path / "wild"
    study.write_text(STUDY)
    assert sweep(study, calm, "--slots", "2", "--threads", "1").wait(600) == 0
    flags = ("--launcher", "slurm", "--threads", "1", "--partition", "main", "--time", "30")
    coordinator = sweep(study, wild, *flags)
    until(lambda: (wild / "plan.json").exists())
    a, b, c, _ = planned(wild)
    until(lambda: at_work(wild, a, 8))
    kill(at_work(wild, a, 8))
    kill(coordinator.pid)
    coordinator.wait()
    until(lambda: at_work(wild, b, 8))
    subprocess.run(["scontrol", "requeue", _task(b, wild)], check=True)
    coordinator = sweep(study, wild, *flags)
    until(lambda: at_work(wild, c, 8))
    subprocess.run(
        ["sbatch", "--partition=urgent", "--ntasks=2", "--output=/dev/null", "--wrap=sleep 1"], check=True
    )
    assert coordinator.wait(900) == 0, Path(f"{wild}.output").read_text()
    assert_same_bits(wild, calm)
    assert all(starts(wild, run) > 1 for run in (a, b, c))
    assert (wild / "launch" / "1.json").exists() and not (wild / "launch" / "2.json").exists()


@pytest.mark.slow
def test_ctrl_c_and_a_time_limit_write_checkpoints(cluster: None, tmp_path: Path) -> None:
    study, out = tmp_path / "study.toml", tmp_path / "out"
    study.write_text(STUDY)
    coordinator = sweep(study, out, "--launcher", "slurm", "--threads", "1")
    until(lambda: (out / "plan.json").exists())
    first, second, *_ = planned(out)
    until(lambda: at_work(out, first, 8))
    subprocess.run(["scancel", "--batch", "--signal=USR2", _task(first, out)], check=True)
    until(lambda: starts(out, first) == 2)
    coordinator.send_signal(signal.SIGINT)
    assert coordinator.wait(300) == 130, Path(f"{out}.output").read_text()
    assert [Record(out / run).status for run in planned(out)].count("running") == 0
    assert not subprocess.run(["squeue", "--noheader"], capture_output=True).stdout
    for run in (first, second):
        record = Record(out / run)
        if record.status == "stopped":
            saved = sorted(file.name for file in (record.path / "checkpoints").iterdir())[-1]
            assert saved == f"step-{record.last_step:08d}.safetensors"


def _task(run: str, out: Path) -> str:
    """Return SLURM's id of the task of a run in the first submission."""
    handoff = Handoff(out / "launch")
    shown = subprocess.run(
        ["squeue", "--noheader", "--array", f"--name={handoff.label}-1", "--format=%K %F"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    index = handoff.submissions()[1].index(run)
    number = dict(line.split() for line in shown.splitlines())[str(index)]
    return f"{number}_{index}"


@pytest.mark.slow
def test_study_is_evaluated_later_as_jobs(cluster: None, tmp_path: Path) -> None:
    """The values are those of the local launcher."""
    study, local = finished_study(tmp_path / "slurm"), finished_study(tmp_path / "local")
    for folder, words in ((study, ("--launcher", "slurm")), (local, ("--slots", "2"))):
        result = CliRunner().invoke(cli, ["eval", str(folder), "--guidance", "2", *words, "--json"])
        assert result.exit_code == 0, result.output
    found, expected = (
        sorted((record.id, record.path.joinpath("evaluations.jsonl").read_text()) for record in records)
        for records in map(find_records, (study, local))
    )
    assert found == expected and len(found) == 2
