"""The options that choose a launcher: what each means, and what is refused before anything starts."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from harness.errors import UserError
from sweeps.cli.status import retry
from sweeps.cli.sweep import sweep
from sweeps.launch import options
from sweeps.launch.options import Choice, launch_options, threads_and_launcher
from sweeps.launch.runner import under_torchrun
from tests.conftest import ROOT


def chosen(*words: str) -> Choice:
    found: list[Choice] = []

    @click.command()
    @launch_options
    def command(choice: Choice) -> None:
        found.append(choice)

    result = CliRunner().invoke(command, words)
    if result.exception is not None:
        raise result.exception
    return found[0]


def test_every_option_arrives() -> None:
    assert chosen() == Choice()
    words = (
        "--launcher slurm --slots 3 --threads 4 --gpus-per-run 2 --mem 16G --time 60 --partition gpu "
        "--sbatch account=lab"
    )
    assert chosen(*words.split()) == Choice("slurm", 3, 4, 2, "16G", 60, "gpu", ("account=lab",))
    assert chosen("--launcher", "ray", "--address", "auto") == Choice("ray", address="auto")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--partition gpu", "--partition says nothing to --launcher local; it is for slurm"),
        ("--launcher ray --time 60", "--time says nothing to --launcher ray; it is for slurm"),
        ("--mem 16G", "--mem says nothing to --launcher local; it is for slurm and ray"),
        ("--launcher slurm --address auto", "--address says nothing to --launcher slurm; it is for ray"),
        ("--launcher slurm --sbatch account", "--sbatch account is not KEY=VALUE"),
    ],
)
def test_an_option_that_says_nothing_is_refused(words: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        chosen(*words.split())


def test_both_commands_have_them() -> None:
    for command in (sweep, retry):
        shown = CliRunner().invoke(command, ["--help"]).output
        assert all(flag in shown for flag in ("--launcher", "--gpus-per-run", "--partition", "--address"))


def test_devices_are_dealt_out_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five devices, two a run: two slots; the fifth device stays free."""
    monkeypatch.setattr(options, "_devices", lambda: list("01234"))
    for gpus, expected in ((None, list("01234")), (2, ["0,1", "2,3"]), (5, ["0,1,2,3,4"])):
        _, launcher = threads_and_launcher(Choice(gpus=gpus), [0], tmp_path)
        assert launcher._devices == expected and len(launcher._free) == len(expected)
    with pytest.raises(UserError, match="--gpus-per-run 6: this machine has 5 GPUs"):
        threads_and_launcher(Choice(gpus=6), [0], tmp_path)


def test_a_run_on_several_devices_is_started_by_torchrun() -> None:
    command = (sys.executable, "-m", "harness.cli.main", "run", "x.toml")
    assert under_torchrun(command, 1) == command
    several = under_torchrun(command, 4)
    assert several[:3] == (sys.executable, "-m", "torch.distributed.run") and several[-4:] == command[1:]
    assert "--nproc-per-node=4" in several


@pytest.mark.parametrize(("launcher", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_an_engine_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: str, package: str
) -> None:
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")  # which is put back afterwards
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails
    with (
        pytest.raises(
            UserError, match=rf"--launcher {launcher} needs .*: pip install 'flowrace\[{launcher}\]'"
        ),
        threads_and_launcher(Choice(launcher), [0], tmp_path)[1],
    ):
        pass


def test_the_page_about_launchers_names_no_option_that_is_not_there() -> None:
    page = (ROOT / "docs" / "guides" / "launchers.md").read_text()
    block = re.search(r"^```sh\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[1]
    for line in block.splitlines():
        _, name, source, *words = line.partition("#")[0].split()
        context = {"sweep": sweep, "retry": retry}[name].make_context(name, [source, *words])
        Choice(**{field: context.params[field] for field in vars(Choice())}).check()
