"""The sweep command from its first start to its report, with stub runs that write real records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from mlflow import MlflowClient

from harness.costs.flops import count_spec
from harness.errors import UserError
from harness.records.record import Record
from sweeps.cli.sweep import sweep
from sweeps.launch.base import Job
from sweeps.launch.local import LocalLauncher
from sweeps.launch.runner import StudyRunner, run_command
from sweeps.plan.plan import PlannedRun
from tests.sweeps.conftest import STUDY, planned_runs, starts, stub_command


def run(study: Path, *options: str, track: bool = False, report: bool = False) -> Result:
    flags = [*([] if track else ["--no-track"]), *([] if report else ["--no-report"])]
    result = CliRunner().invoke(sweep, [str(study), *flags, *options])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_sweep_runs_every_run_once(study: Path, tmp_path: Path) -> None:
    first = run(study, "--slots", "2")
    directory = tmp_path / "runs" / "tiny"
    ids = [planned.id for planned in planned_runs(study)]
    assert first.exit_code == 0, first.output
    assert sorted(path.name for path in directory.glob("????????????")) == sorted(ids)
    assert all(Record(directory / run).status == "done" for run in ids)
    again = run(study)
    assert again.exit_code == 0 and "started" not in again.output
    assert starts(directory) == Counter(ids)


def test_sweep_of_a_grown_study_starts_only_new_runs(study: Path, tmp_path: Path) -> None:
    run(study)
    study.write_text(STUDY.replace("[0, 1]", "[0, 1, 2]"))
    result = run(study)
    assert result.stderr.count("started") == 2
    assert (
        set(starts(tmp_path / "runs" / "tiny").values()) == {1}
        and len(starts(tmp_path / "runs" / "tiny")) == 6
    )


def test_runs_share_the_threads(study: Path, tmp_path: Path) -> None:
    run(study, "--threads", "3", "--out", str(tmp_path / "x"))
    specs = [Record(path).spec for path in (tmp_path / "x").glob("????????????")]
    assert [spec["runtime"]["threads"] for spec in specs] == [3] * 4


@pytest.mark.parametrize("mode", ["fail=repa", "fail=repa:log"])
def test_failed_run_stops_no_other_and_is_retried(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("STUB", mode)
    result = run(study)
    assert result.exit_code == 1
    for planned in planned_runs(study):
        failed = planned.spec.method.name == "repa"
        assert (Record(tmp_path / "runs/tiny" / planned.id).status == "done") != failed
        assert (f"{planned.label} ({planned.id}) failed: the loss is not finite" in result.stdout) == failed
    monkeypatch.delenv("STUB")
    mended = run(study)
    assert mended.exit_code == 0 and mended.stderr.count("started") == 2


def test_killed_run_is_reported_with_its_signal(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill = "import os; print('a last word', flush=True); os.kill(os.getpid(), 9)"
    monkeypatch.setattr(
        "sweeps.launch.runner.run_command", lambda spec, directory: (sys.executable, "-c", kill)
    )
    result = run(study)
    assert result.exit_code == 1 and result.stdout.count("failed: killed by SIGKILL") == 4


def test_sweep_prints_results_as_json(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB", "fail=repa")
    result = json.loads(run(study, "--json").stdout)
    assert [(r["cell"]["method.name"], r["status"]) for r in result["runs"]] == [
        ("flow", "done"),
        ("repa", "failed"),
    ] * 2
    assert (
        result["runs"][0]["metrics"] == {"fd:local": 40 / 6} and result["runs"][0]["training_seconds"] == 3.0
    )
    assert result["runs"][1]["reason"] == "the loss is not finite" and result["report"] is None


def test_dry_run_prints_status_and_cost_and_writes_nothing(study: Path, tmp_path: Path) -> None:
    described = json.loads(run(study, "--dry-run", "--json").stdout)
    assert not (tmp_path / "runs").exists()
    planned = planned_runs(study)
    assert [r["id"] for r in described["runs"]] == [planned.id for planned in planned]
    assert [r["flops"] for r in described["runs"]] == [count_spec(planned.spec).total for planned in planned]
    assert {r["status"] for r in described["runs"]} == {"missing"}
    assert (
        described["flops"]["left"]
        == described["flops"]["total"]
        == sum(r["flops"] for r in described["runs"])
    )


def test_dry_run_counts_only_remaining_steps(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB", "fail=repa")
    run(study)
    stopped = planned_runs(study)[1]
    folder = tmp_path / "runs" / "tiny" / stopped.id
    (folder / "failed").unlink()
    (folder / "events.jsonl").write_text(
        '{"kind": "train", "step": 3, "images": 24, "loss": 1.0, "seconds": {}}\n'
    )
    described = json.loads(run(study, "--dry-run", "--json").stdout)
    assert [r["status"] for r in described["runs"]] == ["done", "stopped", "done", "failed"]
    half, full = (count_spec(planned.spec).total for planned in (stopped, stopped))
    assert described["flops"]["left"] == round(half * 0.5) + full
    shown = run(study, "--dry-run").stdout
    assert f"{stopped.id}  0     repa         stopped at step 3" in shown
    assert "4 runs: 2 done, 1 stopped, 1 failed" in shown


def test_report_path_is_the_last_line(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def write_report(directories: list[Path], output: Path, *, claims: list[Path]) -> Any:
        assert not claims
        calls.append((directories, output))
        found = types.SimpleNamespace(caveats=("Only just.",))
        return types.SimpleNamespace(headline="repa was first.", report=found)

    monkeypatch.setitem(sys.modules, "reports.pages.page", types.SimpleNamespace(write_report=write_report))
    result = run(study, report=True)
    assert result.stdout.splitlines()[-3:] == ["repa was first.", "- Only just.", "runs/tiny/report.html"]
    assert calls == [([Path("runs/tiny")], Path("runs/tiny/report.html"))]


def test_sweep_writes_no_report_without_a_finished_run(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # None makes the import fail.
    monkeypatch.setitem(sys.modules, "reports.pages.page", None)
    monkeypatch.setattr(
        "sweeps.launch.runner.run_command", lambda spec, directory: (sys.executable, "-c", "1 / 0")
    )
    result = run(study, report=True)
    assert result.exit_code == 1 and result.stdout.count("failed: ZeroDivisionError: division by zero") == 4


def test_runs_are_mirrored_as_they_end_and_a_lost_store_is_rebuilt(
    study: Path, tmp_path: Path, new_store: Callable[[Path], str]
) -> None:
    for name in ("mlflow.db", "other.db"):
        new_store(tmp_path / name)
    assert run(study, track=True).exit_code == 0

    def stored(store: str = "mlflow.db") -> tuple[list[str], int]:
        client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/{store}")
        found = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
        points = sum(len(client.get_metric_history(r.info.run_id, "train/loss")) for r in found)
        return sorted(r.info.status for r in found), points

    assert stored() == (["FINISHED"] * 5, 4 * 6)
    run(study, track=True)
    assert stored() == (["FINISHED"] * 5, 4 * 6)
    run(study, "--track", "sqlite:///other.db", track=True)
    assert stored("other.db") == (["FINISHED"] * 5, 4 * 6)


@pytest.mark.slow
def test_store_that_is_created_during_the_runs_has_all_of_them(study: Path, tmp_path: Path) -> None:
    assert run(study, track=True, report=True).exit_code == 0
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert [one.info.status for one in found] == ["FINISHED"] * 5


def test_named_store_must_exist(study: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot mirror into nonsense://x"):
        run(study, "--track", "nonsense://x", track=True)
    assert not (tmp_path / "runs").exists()


def test_runs_continue_without_mlflow(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.records.mlflow_store.find_spec", lambda name: None)
    result = run(study, track=True)
    assert result.exit_code == 0
    assert result.stderr.count("not tracked: MLflow is not installed") == 1


def test_failing_mirror_stops_no_run(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_store: Callable[[Path], str]
) -> None:
    new_store(tmp_path / "mlflow.db")

    def broken(*_: Any, **__: Any) -> None:
        raise UserError("the server is gone")

    monkeypatch.setattr("harness.records.mlflow_mirror.mirror", broken)
    result = run(study, track=True)
    assert result.exit_code == 0 and result.stderr.count("not mirrored: the server is gone") == 5


class TakeoverWatcher:
    """A watcher that stops another process's run once the sweep is waiting for it."""

    def __init__(self, foreign: subprocess.Popen[Any]) -> None:
        self.foreign, self.lines = foreign, []

    def started(self, planned: PlannedRun) -> None:
        self.lines.append(f"started {planned.label}")

    def finished(self, planned: PlannedRun, failure: str | None) -> None:
        self.lines.append(f"{planned.label} {failure or 'done'}")

    def stopping(self) -> None:
        self.lines.append("stopping")

    def tick(self) -> None:
        if self.foreign.poll() is None and "flow seed 1 done" in self.lines:
            self.foreign.terminate()
            self.foreign.wait()


def test_run_of_another_process_is_waited_for_and_taken_over(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runs of a killed sweep continue; the next sweep starts none of them twice."""
    one, _, other, _ = planned_runs(study)
    spec = tmp_path / f"{one.id}.toml"
    spec.write_text(one.spec.to_toml())
    foreign = subprocess.Popen(stub_command(spec, tmp_path), env={**os.environ, "STUB": "wait"})
    while Record(tmp_path / one.id).last_step < 3:
        assert foreign.poll() is None
    watcher, done = TakeoverWatcher(foreign), []
    with LocalLauncher(1) as launcher:
        runner = StudyRunner([one, other], tmp_path, launcher, watcher, done.append)
        runner.run()
    assert watcher.lines == [
        f"started {other.label}",
        f"{other.label} done",
        f"started {one.label}",
        f"{one.label} done",
    ]
    assert [record.id for record in done] == [other.id, one.id] and runner.failures == {}
    assert [event["step"] for event in Record(tmp_path / one.id).of("train")] == [1, 2, 3, 4, 5, 6]


def test_second_sweep_in_a_folder_is_rejected(study: Path, tmp_path: Path) -> None:
    from sweeps.plan.study_folder import study_lock

    with (
        study_lock(tmp_path / "runs" / "tiny"),
        pytest.raises(UserError, match=f"in use by process {os.getpid()} on"),
    ):
        run(study)
    assert run(study).exit_code == 0


def test_unwritable_folder_is_a_user_error(study: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write the folder"):
        run(study, "--out", str(tmp_path / "file" / "x"))


@pytest.mark.parametrize("processes", [1, 2])
def test_job_has_the_number_of_ranks(study: Path, tmp_path: Path, processes: int) -> None:
    """A launcher stops the ranks itself, because torchrun does not."""
    jobs: list[Job] = []
    never = types.SimpleNamespace(active=False, stopped_by=None, submit=jobs.append, holds=lambda name: False)
    StudyRunner(planned_runs(study), tmp_path, never, None, print, processes=processes).run()
    assert [job.ranks for job in jobs] == [processes] * 4
    assert all(("torch.distributed.run" in job.command) == (processes == 2) for job in jobs)


def test_run_command_starts_the_cli_in_this_python() -> None:
    command = run_command(Path("x/specs/abc.toml"), Path("x"))
    assert command == (
        sys.executable, "-m", "harness.cli.main", "run", "x/specs/abc.toml", "--out", "x", "--no-track",
        "--quiet",
    )  # fmt: skip


def test_help_and_errors_import_no_torch() -> None:
    code = """if True:
        import sys
        from harness.cli.main import main
        try:
            main()
        finally:
            print(sorted({"torch", "mlflow"} & set(sys.modules)), file=sys.stderr)
    """
    shown = subprocess.run([sys.executable, "-c", code, "sweep", "--help"], capture_output=True, text=True)
    assert shown.returncode == 0 and shown.stderr.endswith("[]\n") and "--dry-run" in shown.stdout
    wrong = subprocess.run([sys.executable, "-c", code, "sweep", "digit"], capture_output=True, text=True)
    assert (
        wrong.returncode == 2 and "Did you mean 'digits'" in wrong.stderr and "Traceback" not in wrong.stderr
    )
