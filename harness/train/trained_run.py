"""A trained run on disk, opened again: its spec, its network, its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.assembly.resolve import load_spec
from harness.config.spec import RunSpec
from harness.errors import UserError
from harness.records.record import Record


def spec_of_run(path: Path, overrides: tuple[str, ...]) -> RunSpec:
    """The spec of a run directory, with overrides of what does not belong to training."""
    if not Record(path).path.is_dir():
        raise UserError(f"no such run directory: {path}")
    Record(path).spec  # noqa: B018 (says clearly when this is no run directory)
    for override in overrides:
        if not override.startswith(("eval.", "runtime.", "data.root")):
            raise UserError(
                f"--set {override}: a run that is trained can only be given other eval.*, runtime.* or data.root"
            )
    return load_spec(str(path), overrides)


def model_of_run(path: Path, spec: RunSpec, step: int | None) -> tuple[Path, Any, Any]:
    """The checkpoint file, its EMA network and the device."""
    from harness.data.open import open_dataset
    from harness.runtime.distributed import pick_device
    from harness.train.state import load_ema

    file = checkpoint_of_run(path, step)
    device = pick_device(spec.runtime.device)
    return file, load_ema(file, spec, open_dataset(spec.data), device), device


def checkpoint_of_run(path: Path, step: int | None) -> Path:
    """The checkpoint of a step, or the newest; raises `UserError` where there is none."""
    from harness.records.checkpoint import checkpoints, path_of

    found = checkpoints(path / "checkpoints")
    if not found:
        raise UserError(f"{path} has no checkpoint yet")
    file = found[-1] if step is None else path_of(path / "checkpoints", step)
    if file not in found:
        raise UserError(
            f"{path} has no checkpoint of step {step} (there are: {', '.join(f.stem for f in found)})"
        )
    return file
