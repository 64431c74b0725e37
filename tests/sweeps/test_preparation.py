"""The store of a study is created while its runs train, unless its faults must come first."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import UserError
from sweeps.cli.preparation import prepare
from sweeps.launch.options import LaunchOptions

LOCAL = LaunchOptions()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in whose place of a store there is no room for one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "file").touch()
    return tmp_path


def test_fault_of_a_new_default_store_is_printed_once_when_a_run_has_finished(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///file/mlflow.db")
    store = prepare(None, LOCAL, no_report=True)
    assert capsys.readouterr().err == ""
    assert store() is None and store() is None
    assert capsys.readouterr().err.count("not tracked: cannot mirror into sqlite:///") == 1


@pytest.mark.parametrize("launch", [LOCAL, LaunchOptions(launcher="slurm")])
def test_fault_of_a_named_store_comes_before_anything_starts(folder: Path, launch: LaunchOptions) -> None:
    with pytest.raises(UserError, match="cannot mirror into"):
        prepare("sqlite:///file/mlflow.db", launch, no_report=True)


def test_fault_of_a_store_for_another_launcher_comes_before_anything_starts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///file/mlflow.db")
    store = prepare(None, LaunchOptions(launcher="ray"), no_report=True)
    assert "not tracked: " in capsys.readouterr().err
    assert store() is None and capsys.readouterr().err == ""
