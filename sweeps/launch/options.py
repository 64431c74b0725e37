"""The options that choose a launcher and what it gives to a run: the same for every command that starts runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any

import click

from harness.errors import UserError
from sweeps.launch.base import Launcher, Resources

ONLY = {
    "memory": ("slurm", "ray"),
    "minutes": ("slurm",),
    "partition": ("slurm",),
    "sbatch": ("slurm",),
    "address": ("ray",),
}
FLAGS = {"memory": "--mem", "minutes": "--time"}
OPTIONS = (
    click.option(
        "--launcher",
        type=click.Choice(["local", "slurm", "ray"]),
        default="local",
        show_default=True,
        help="What starts the runs: this machine, SLURM, or Ray.",
    ),
    click.option(
        "--slots",
        type=click.IntRange(1),
        help="Runs at a time (default: local: one for each GPU; on CPU cores / threads of a run, else one. SLURM and Ray: as many "
        "as they have room for).",
    ),
    click.option(
        "--threads",
        type=click.IntRange(1),
        help="CPU threads of one run (default: its runtime.threads; else local: cores / slots, SLURM and Ray: 1).",
    ),
    click.option(
        "--gpus-per-run",
        "gpus",
        type=click.IntRange(1),
        help="GPUs of one run; several run under torchrun (default: local: 1 where there are any, SLURM and Ray: none).",
    ),
    click.option("--mem", "memory", metavar="SIZE", help="Memory of one run, as 16G (SLURM, Ray)."),
    click.option(
        "--time",
        "minutes",
        type=click.IntRange(3),
        metavar="MINUTES",
        help="Time limit of one attempt of a run; it then queues again, from its checkpoint (SLURM).",
    ),
    click.option("--partition", help="Where the jobs queue (SLURM)."),
    click.option(
        "--sbatch",
        multiple=True,
        metavar="KEY=VALUE",
        help="Any other option of sbatch, as --sbatch account=lab; may be repeated.",
    ),
    click.option(
        "--address",
        help="A Ray cluster that is there: auto or host:port (default: one is started here).",
    ),
)


@dataclass(frozen=True)
class Choice:
    """What the options say."""

    launcher: str = "local"
    slots: int | None = None
    threads: int | None = None
    gpus: int | None = None
    memory: str | None = None
    minutes: int | None = None
    partition: str | None = None
    sbatch: tuple[str, ...] = ()
    address: str | None = None

    def check(self) -> None:
        """Raises `UserError` for an option that the launcher does not have, or that is not KEY=VALUE."""
        for name, launchers in ONLY.items():
            if getattr(self, name) and self.launcher not in launchers:
                flag = FLAGS.get(name, f"--{name}")
                raise UserError(
                    f"{flag} says nothing to --launcher {self.launcher}; it is for {' and '.join(launchers)}"
                )
        for setting in self.sbatch:
            if "=" not in setting:
                raise UserError(f"--sbatch {setting} is not KEY=VALUE, as --sbatch account=lab")

    @property
    def processes(self) -> int:
        return self.gpus or 1


def launch_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options above; it receives them as one `choice`."""
    names = [field.name for field in fields(Choice)]

    @wraps(command)
    def called(**given: Any) -> Any:
        choice = Choice(**{name: given.pop(name) for name in names})
        choice.check()
        return command(**given, choice=choice)

    for option in reversed(OPTIONS):
        called = option(called)
    return called


def threads_and_launcher(choice: Choice, threads: Sequence[int], directory: Path) -> tuple[int, Launcher]:
    """The threads of a run that names none, and the launcher. `threads`: what each run names, 0 for none."""
    if choice.launcher == "local":
        return _local(choice, threads)
    each = choice.threads or max(*threads, 1)
    resources = Resources(each, choice.gpus or 0, choice.memory, choice.minutes)
    return each, _engine(choice, resources, directory / "launch")


def _local(choice: Choice, threads: Sequence[int]) -> tuple[int, Launcher]:
    from harness.runtime.environment import cores
    from sweeps.launch.local import LocalLauncher

    devices = _grouped(_devices(), choice.gpus)
    slots = choice.slots or len(devices) or _cpu_slots(threads)
    each = choice.threads or max(1, cores() // slots)
    return each, LocalLauncher(slots, devices=devices, env={"OMP_NUM_THREADS": str(each)})


def _engine(choice: Choice, resources: Resources, folder: Path) -> Launcher:
    from sweeps.launch.handoff import Board

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write the folder {folder}: {error.strerror}") from error
    board = Board(folder, {"OMP_NUM_THREADS": str(resources.cpus)})
    if choice.launcher == "ray":
        from sweeps.launch.ray import RayLauncher

        return RayLauncher(board, resources, address=choice.address, at_a_time=choice.slots)
    from sweeps.launch.slurm import SlurmLauncher

    settings = dict(setting.split("=", 1) for setting in choice.sbatch)
    if choice.partition:
        settings["partition"] = choice.partition
    return SlurmLauncher(board, resources, at_a_time=choice.slots, options=settings)


def _grouped(devices: list[str], size: int | None) -> list[str]:
    """Devices as the slots see them: `size` together. Raises `UserError` where there are fewer."""
    size = size or 1
    if size > 1 and len(devices) < size:
        raise UserError(f"--gpus-per-run {size}: this machine has {len(devices)} GPUs")
    return [",".join(devices[k : k + size]) for k in range(0, len(devices) - size + 1, size)]


def _cpu_slots(threads: Sequence[int]) -> int:
    """As many runs side by side as their threads fill the cores; one where a run takes whatever there is."""
    from harness.runtime.environment import cores

    return max(1, cores() // max(threads)) if max(threads) else 1


def _devices() -> list[str]:
    """The names of the CUDA devices that this process may use."""
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(k) for k in range(count)]
