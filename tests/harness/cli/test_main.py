"""The `flowrace` command in a process: lazy imports, help, exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from harness.cli.main import COMMANDS, cli
from harness.records.record import Record
from tests.support.runs import TINY, tiny, trained

pytestmark = pytest.mark.usefixtures("quick_networks")

LIGHT = (
    "harness.cli.main",
    "harness.records.record",
    "harness.config.spec",
    "harness.config.registry",
    "metrics",
)
HEAVY = ("torch", "mlflow", "pandas", "sklearn")


def flowrace(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness.cli.main", *words], capture_output=True, text=True, timeout=120
    )


def test_light_modules_import_no_heavy_package() -> None:
    code = f"""if True:
        import importlib, sys
        for module in {LIGHT}:
            importlib.import_module(module)
            print(module, [heavy for heavy in {HEAVY} if heavy in sys.modules])
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [f"{module} []" for module in LIGHT]


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """Yield a command and those below it, with their full names."""
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            assert found is not None
            yield from commands(found, f"{name} {below}")


def test_help_shows_each_example_on_one_line_in_80_columns() -> None:
    for name, command in commands(cli, "flowrace"):
        text = command.get_help(
            click.Context(command, info_name=name, terminal_width=80, max_content_width=80)
        )
        _, _, example = text.partition("Example:")
        shown = [line.strip() for line in example.splitlines() if line.strip().startswith("flowrace ")]
        written = (command.epilog or "").replace("\b", "").partition("Example:")[2]
        for line in shown:
            assert any(whole.strip() == line for whole in written.splitlines()), (name, line)
        assert shown, name


def test_help_lists_every_command_with_an_example() -> None:
    result = flowrace("--help")
    assert result.returncode == 0
    for name in COMMANDS:
        assert name in result.stdout
        page = CliRunner().invoke(cli, [name, "--help"])
        assert page.exit_code == 0 and "Example:" in page.stdout, name


def test_mistake_exits_with_2_and_without_traceback() -> None:
    """In a process; in this one, many mistakes are in test_mistakes.py."""
    result = flowrace("run", "digits", "--set", "trian.steps=1")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == 1 and "Did you mean 'train.steps'" in result.stderr


@pytest.mark.parametrize("words", [["claims"], ["list", "sizes", "--json"]])
def test_closed_pipe_ends_the_command_silently_with_141(words: list[str]) -> None:
    """The code is 128 + SIGPIPE. One command prints with rich, the other with click."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as pipe:
        command = [sys.executable, "-m", "harness.cli.main", *words]
        result = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (141, "")


def test_list_and_doctor_print_to_standard_output() -> None:
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
    assert "torch" in CliRunner().invoke(cli, ["doctor"]).stdout


def test_run_resumes_from_within_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = trained(tiny("train.steps=2"), tmp_path / "runs")
    (record.path / "done").unlink()
    monkeypatch.chdir(record.path)
    CliRunner().invoke(cli, ["run", ".", "--no-track", "--quiet"], catch_exceptions=False)
    assert Record(record.path).status == "done" and len(Record(record.path).environment) == 2
    assert [file.parent for file in tmp_path.rglob("spec.toml")] == [record.path]


def test_run_trains_a_preset_when_a_folder_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    words = [word for setting in (*TINY, "train.steps=1") for word in ("--set", setting)]
    CliRunner().invoke(cli, ["run", "digits", *words, "--no-track", "--quiet"], catch_exceptions=False)
    assert Record(tmp_path / "runs" / tiny("train.steps=1").id).status == "done"
