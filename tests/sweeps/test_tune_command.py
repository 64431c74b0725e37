"""The tune command from its plan to its presets, with stub runs, and with real runs after kills."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import tomli_w
from click.testing import CliRunner, Result

from harness.assembly.resolve import load_spec
from harness.errors import UserError
from harness.records.record import Record
from sweeps.cli.tune import tune
from tests.support.runs import TINY, everything
from tests.support.studies import finish_study, start_command
from tests.sweeps.conftest import RATE, TABLE, stub_command


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STUB", raising=False)
    monkeypatch.setattr("sweeps.launch.runner.run_command", stub_command)
    (tmp_path / "t.toml").write_text(tomli_w.dumps(TABLE | {"tune": TABLE["tune"] | {"trials": 2}}))
    return tmp_path / "t.toml"


def call(file: Path, *options: str) -> Result:
    result = CliRunner().invoke(tune, [str(file), *options])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_dry_run_writes_nothing_and_prints_every_budget(file: Path, tmp_path: Path) -> None:
    described = json.loads(call(file, "--dry-run", "--json").stdout)
    assert (
        described["runs"] == 2 * 2 * 2
        and described["tuning_seeds"] == [100, 101]
        and described["audit_seeds"] == [0, 1, 2]
    )
    flow, self_flow = described["methods"]["flow"], described["methods"]["self_flow"]
    assert flow["flops"] == self_flow["flops"] and flow["steps"] == 40 > self_flow["steps"]
    assert set(self_flow["space"]) == {"train.learning_rate", "method.gamma", "method.mask_ratio"}
    assert "0.001 to 0.01 (log)" in call(file, "--dry-run").stdout and not (tmp_path / "runs").exists()


def test_search_ends_with_presets_and_does_not_run_twice(file: Path, tmp_path: Path) -> None:
    described = json.loads(call(file, "--json", "--slots", "2").stdout)
    for method, own in described["methods"].items():
        assert own["trials"] == 2 and own["flops"]["spent"] <= own["flops"]["given"]
        best = own["best"]
        # The stub records 40 / step.
        assert best["mean"] == 40 / best["steps"] and best["n"] == 2
        assert (
            load_spec(described["files"][method]).train.learning_rate == best["params"]["train.learning_rate"]
        )
    again = call(file)
    assert again.exit_code == 0 and "started" not in again.stderr and "flow" in again.stdout
    assert all(len(Record(path.parent).environment) == 1 for path in tmp_path.glob("runs/t/*/spec.toml"))


@pytest.mark.parametrize(
    ("module", "name"), [("plan.study_folder", "tune.toml"), ("tune.results", "history.json")]
)
def test_full_disk_is_one_sentence(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"sweeps.{module}.write_atomic", full)
    with pytest.raises(UserError, match=rf"^cannot write \S*{name}: No space left on device$"):
        call(file)


def test_diverging_method_keeps_its_trials_and_has_no_best(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB", "fail=self_flow")
    described = json.loads(call(file, "--json").stdout)
    assert (
        described["methods"]["self_flow"]["best"] is None and described["methods"]["self_flow"]["trials"] == 2
    )
    # Without a best setting of each method there is no audit study.
    assert set(described["files"]) == {"history", "table", "flow"}


def test_run_without_a_result_is_run_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill = "import os; os.kill(os.getpid(), 9)"
    monkeypatch.setattr("sweeps.launch.runner.run_command", lambda spec, folder: (sys.executable, "-c", kill))
    broken = call(file)
    assert broken.exit_code == 1 and "rerun the same command to resume" in broken.stderr
    monkeypatch.setattr("sweeps.launch.runner.run_command", stub_command)
    assert call(file).exit_code == 0


def test_folder_of_another_search_or_a_sweep_is_rejected(file: Path, tmp_path: Path) -> None:
    (tmp_path / "swept").mkdir()
    (tmp_path / "swept" / "plan.json").write_text("{}")
    with pytest.raises(UserError, match="holds the runs of a sweep"):
        call(file, "--out", "swept")
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "tune.toml").write_text('name = "other"')
    with pytest.raises(UserError, match="holds the search 'other', not 't'"):
        call(file, "--out", "held")


def test_missing_optuna_names_its_install_command(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.cli.tune.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'flowrace\[tune\]'"):
        call(file)


@pytest.mark.slow
def test_real_runs_survive_random_kills_of_the_coordinator(tmp_path: Path) -> None:
    source, dice = tmp_path / "t.toml", random.Random(1121)
    table = {**TABLE, "axes": {"method.name": ["flow"]}, "set": {}, "tune": {"trials": 3, "space": {}}}
    table["tune"]["space"]["train.learning_rate"] = RATE
    source.write_text(tomli_w.dumps(table))

    def start(out: str) -> subprocess.Popen[bytes]:
        settings = [setting for setting in TINY if "learning_rate" not in setting]
        return start_command("tune", source, tmp_path / out, settings)

    finish_study(partial(start, "calm"), tmp_path / "calm", tries=1)
    kills = 0
    for _ in range(6):
        coordinator = start("wild")
        try:
            if coordinator.wait(dice.uniform(5, 20)) == 0:
                break
        except subprocess.TimeoutExpired:
            coordinator.send_signal(signal.SIGKILL)
            coordinator.wait()
            kills += 1
    finish_study(partial(start, "wild"), tmp_path / "wild")
    assert kills
    calm, wild = tmp_path / "calm", tmp_path / "wild"
    assert (calm / "history.json").read_text() == (wild / "history.json").read_text()
    ids = [path.parent.name for path in calm.glob("*/spec.toml")]
    assert sorted(ids) == sorted(path.parent.name for path in wild.glob("*/spec.toml")) and len(ids) == 6
    for run in ids:
        assert everything(Record(calm / run)) == everything(Record(wild / run))
