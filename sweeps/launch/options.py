"""Options that choose a launcher and the resources of a run, shared by every command that starts runs."""

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

LAUNCHERS_WITH = {
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
        help="Engine that runs the jobs: this machine, SLURM or Ray.",
    ),
    click.option(
        "--slots",
        type=click.IntRange(1),
        help="Maximum concurrent runs. Default: one per GPU locally (on CPU: cores / threads of a run, else "
        "one); no limit with SLURM or Ray.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(1),
        help="CPU threads of one run. Default: its runtime.threads, else cores / slots locally, 1 with SLURM "
        "or Ray.",
    ),
    click.option(
        "--gpus-per-run",
        "gpus",
        type=click.IntRange(1),
        help="GPUs of one run; several start under torchrun. Default: 1 locally if available, none with "
        "SLURM or Ray.",
    ),
    click.option("--mem", "memory", metavar="SIZE", help="Memory of one run, for example 16G (SLURM, Ray)."),
    click.option(
        "--time",
        "minutes",
        type=click.IntRange(3),
        metavar="MINUTES",
        help="Time limit of one attempt of a run, which is then queued again and resumes (SLURM).",
    ),
    click.option("--partition", help="Partition of the jobs (SLURM)."),
    click.option(
        "--sbatch",
        multiple=True,
        metavar="KEY=VALUE",
        help="Any other option of sbatch, for example --sbatch account=lab; may be repeated.",
    ),
    click.option(
        "--address",
        help="Address of an existing Ray cluster: auto or host:port (default: start one locally).",
    ),
)


@dataclass(frozen=True)
class LaunchOptions:
    """The values of the options above."""

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
        """Raise `UserError` for an option that the launcher does not have, or a setting that is not
        KEY=VALUE."""
        for name, launchers in LAUNCHERS_WITH.items():
            if getattr(self, name) and self.launcher not in launchers:
                flag = FLAGS.get(name, f"--{name}")
                raise UserError(
                    f"{flag} has no effect with --launcher {self.launcher}; it applies to "
                    f"{' and '.join(launchers)}"
                )
        for setting in self.sbatch:
            if "=" not in setting:
                raise UserError(
                    f"--sbatch {setting} is not KEY=VALUE; write for example --sbatch account=lab"
                )

    @property
    def processes(self) -> int:
        return self.gpus or 1


def launch_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options above to a command, which receives them as one argument `launch`."""
    names = [field.name for field in fields(LaunchOptions)]

    @wraps(command)
    def called(**given: Any) -> Any:
        launch = LaunchOptions(**{name: given.pop(name) for name in names})
        launch.check()
        return command(**given, launch=launch)

    for option in reversed(OPTIONS):
        called = option(called)
    return called


def threads_and_launcher(
    launch: LaunchOptions, threads: Sequence[int], directory: Path
) -> tuple[int, Launcher]:
    """Return the launcher, preceded by the threads of runs whose spec sets none.

    `threads` holds the threads in each spec, 0 if unset.
    """
    if launch.launcher == "local":
        return _local(launch, threads)
    each = launch.threads or max(*threads, 1)
    resources = Resources(each, launch.gpus or 0, launch.memory, launch.minutes)
    return each, _engine(launch, resources, directory / "launch")


def _local(launch: LaunchOptions, threads: Sequence[int]) -> tuple[int, Launcher]:
    from harness.runtime.environment import cores
    from sweeps.launch.local import LocalLauncher

    devices = _grouped(_devices(), launch.gpus)
    slots = launch.slots or len(devices) or _cpu_slots(threads)
    each = launch.threads or max(1, cores() // slots)
    return each, LocalLauncher(slots, devices=devices, env={"OMP_NUM_THREADS": str(each)})


def _engine(launch: LaunchOptions, resources: Resources, folder: Path) -> Launcher:
    from sweeps.launch.handoff import Handoff

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write the folder {folder}: {error.strerror}") from error
    handoff = Handoff(folder, {"OMP_NUM_THREADS": str(resources.cpus)})
    if launch.launcher == "ray":
        from sweeps.launch.ray import RayLauncher

        return RayLauncher(handoff, resources, address=launch.address, at_a_time=launch.slots)
    from sweeps.launch.slurm import SlurmLauncher

    settings = dict(setting.split("=", 1) for setting in launch.sbatch)
    if launch.partition:
        settings["partition"] = launch.partition
    return SlurmLauncher(handoff, resources, at_a_time=launch.slots, options=settings)


def _grouped(devices: list[str], size: int | None) -> list[str]:
    """Return the devices of each slot, `size` together; raise `UserError` if there are fewer."""
    size = size or 1
    if size > 1 and len(devices) < size:
        raise UserError(f"--gpus-per-run {size}: this machine has {len(devices)} GPUs")
    return [",".join(devices[k : k + size]) for k in range(0, len(devices) - size + 1, size)]


def _cpu_slots(threads: Sequence[int]) -> int:
    """Return the number of runs whose threads fill the cores; 1 if no spec sets its threads."""
    from harness.runtime.environment import cores

    return max(1, cores() // max(threads)) if max(threads) else 1


def _devices() -> list[str]:
    """Return the names of the CUDA devices that this process may use."""
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(k) for k in range(count)]
