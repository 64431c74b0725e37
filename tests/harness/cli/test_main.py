"""The command line from outside: quick, lazy, and clear about mistakes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cli.main import COMMANDS, cli
from harness.records.record import Record
from tests.support.runs import TINY, tiny, trained

LIGHT = (
    "import sys; import {module}; "
    "print([m for m in ('torch', 'mlflow', 'pandas', 'sklearn') if m in sys.modules])"
)


def flowrace(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "harness.cli.main", *words], capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    "module",
    [
        "harness.cli.main",
        "harness.records.record",
        "harness.config.spec",
        "harness.config.registry",
        "metrics",
    ],
)
def test_light_modules_import_nothing_heavy(module: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", LIGHT.format(module=module)], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_help_lists_every_command_with_an_example() -> None:
    result = flowrace("--help")
    assert result.returncode == 0
    for name in COMMANDS:
        assert name in result.stdout
        page = flowrace(name, "--help")
        assert page.returncode == 0 and "Example:" in page.stdout, name


def test_mistakes_exit_with_2_and_one_sentence() -> None:
    for words in (
        ["run", "digitz"],
        ["run", "digits", "--set", "trian.steps=1"],
        ["list", "method"],
        ["explain", "rep"],
        ["probe", "nowhere"],
        ["nonsense"],
        ["run"],
    ):
        result = flowrace(*words)
        assert result.returncode == 2, words
        assert "Traceback" not in result.stderr and result.stderr.strip()


@pytest.mark.parametrize("words", [["claims"], ["list", "sizes", "--json"]])
def test_a_closed_pipe_ends_as_a_shell_has_it(words: list[str]) -> None:
    """128 + SIGPIPE, and not a word; what rich prints, and what click does."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as pipe:
        command = [sys.executable, "-m", "harness.cli.main", *words]
        result = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (141, "")


def test_list_and_doctor() -> None:
    everything = flowrace("list").stdout
    for word in (
        "self_flow",
        "repa",
        "timm:<model>",
        "inception",
        "parquet",
        "digits",
        "XL",
        "euler_maruyama",
    ):
        assert word in everything
    assert "torch" in flowrace("doctor").stdout


def test_a_run_goes_on_from_within_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = trained(tiny("train.steps=2"), tmp_path / "runs")
    (record.path / "done").unlink()
    monkeypatch.chdir(record.path)
    CliRunner().invoke(cli, ["run", ".", "--no-track", "--quiet"], catch_exceptions=False)
    assert Record(record.path).status == "done" and len(Record(record.path).environment) == 2
    assert [file.parent for file in tmp_path.rglob("spec.toml")] == [record.path]


def test_a_preset_trains_beside_a_folder_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    words = [word for setting in (*TINY, "train.steps=1") for word in ("--set", setting)]
    CliRunner().invoke(cli, ["run", "digits", *words, "--no-track", "--quiet"], catch_exceptions=False)
    assert Record(tmp_path / "runs" / tiny("train.steps=1").id).status == "done"
