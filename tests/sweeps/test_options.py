"""Options that choose a launcher, and invalid combinations, which are rejected before anything starts."""

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
from sweeps.launch.options import LaunchOptions, launch_options, threads_and_launcher
from sweeps.launch.runner import under_torchrun
from tests.conftest import ROOT


def chosen(*words: str) -> LaunchOptions:
    found: list[LaunchOptions] = []

    @click.command()
    @launch_options
    def command(launch: LaunchOptions) -> None:
        found.append(launch)

    result = CliRunner().invoke(command, words)
    if result.exception is not None:
        raise result.exception
    return found[0]


def test_launch_options_receive_every_flag() -> None:
    assert chosen() == LaunchOptions()
    words = "--launcher slurm --slots 3 --threads 4 --gpus-per-run 2 --mem 16G --time 60 --partition gpu"
    words += " --sbatch account=lab"
    assert chosen(*words.split()) == LaunchOptions("slurm", 3, 4, 2, "16G", 60, "gpu", ("account=lab",))
    assert chosen("--launcher", "ray", "--address", "auto") == LaunchOptions("ray", address="auto")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--partition gpu", "--partition has no effect with --launcher local; it applies to slurm"),
        ("--launcher ray --time 60", "--time has no effect with --launcher ray; it applies to slurm"),
        ("--mem 16G", "--mem has no effect with --launcher local; it applies to slurm and ray"),
        (
            "--launcher slurm --address auto",
            "--address has no effect with --launcher slurm; it applies to ray",
        ),
        ("--launcher slurm --sbatch account", "--sbatch account is not KEY=VALUE"),
    ],
)
def test_option_of_another_launcher_is_rejected(words: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        chosen(*words.split())


def test_sweep_and_tune_have_launch_options() -> None:
    for command in (sweep, retry):
        shown = CliRunner().invoke(command, ["--help"]).output
        assert all(flag in shown for flag in ("--launcher", "--gpus-per-run", "--partition", "--address"))


def test_devices_are_grouped_by_gpus_per_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five devices with two per run make two slots; the fifth device stays free."""
    monkeypatch.setattr(options, "_devices", lambda: list("01234"))
    for gpus, expected in ((None, list("01234")), (2, ["0,1", "2,3"]), (5, ["0,1,2,3,4"])):
        _, launcher = threads_and_launcher(LaunchOptions(gpus=gpus), [0], tmp_path)
        assert launcher._devices == expected and len(launcher._free) == len(expected)
    with pytest.raises(UserError, match="--gpus-per-run 6: this machine has 5 GPUs"):
        threads_and_launcher(LaunchOptions(gpus=6), [0], tmp_path)


def test_run_on_several_devices_starts_under_torchrun() -> None:
    command = (sys.executable, "-m", "harness.cli.main", "run", "x.toml")
    assert under_torchrun(command, 1) == command
    several = under_torchrun(command, 4)
    assert several[:3] == (sys.executable, "-m", "torch.distributed.run") and several[-4:] == command[1:]
    assert "--nproc-per-node=4" in several


@pytest.mark.parametrize(("launcher", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_missing_engine_names_its_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: str, package: str
) -> None:
    # Set, so that monkeypatch restores it after the launcher has changed it.
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")
    # None makes the import fail.
    monkeypatch.setitem(sys.modules, package, None)
    with (
        pytest.raises(
            UserError, match=rf"--launcher {launcher} needs .*: pip install 'flowrace\[{launcher}\]'"
        ),
        threads_and_launcher(LaunchOptions(launcher), [0], tmp_path)[1],
    ):
        pass


def test_launcher_docs_name_only_existing_options() -> None:
    page = (ROOT / "docs" / "guides" / "launchers.md").read_text()
    block = re.search(r"^```sh\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[1]
    for line in block.splitlines():
        _, name, source, *words = line.partition("#")[0].split()
        context = {"sweep": sweep, "retry": retry}[name].make_context(name, [source, *words])
        LaunchOptions(**{field: context.params[field] for field in vars(LaunchOptions())}).check()
