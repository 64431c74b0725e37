"""The command line from outside: quick, lazy, and clear about mistakes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from harness.cli import COMMANDS

LIGHT = "import sys; import {module}; print([m for m in ('torch', 'mlflow', 'pandas', 'sklearn') if m in sys.modules])"


def flowrace(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "harness.cli", *words], capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    "module", ["harness.cli", "harness.record", "harness.spec", "harness.registry", "metrics"]
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
