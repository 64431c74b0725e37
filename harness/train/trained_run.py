"""A trained run on disk, opened again: its spec, its checkpoints, its network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.assembly.resolve import load_spec
from harness.config.spec import RunSpec
from harness.errors import UserError
from harness.records.record import Record

if TYPE_CHECKING:
    import torch

    from harness.backbone.sit import SiT
    from harness.data.dataset import Dataset


def spec_of_run(path: Path, overrides: tuple[str, ...]) -> RunSpec:
    """Return the spec of a run directory, with overrides of fields that do not change its training."""
    if not path.is_dir():
        raise UserError(f"no such run directory: {path}")
    Record(path).spec  # noqa: B018 (raises a clear error if this is not a run directory)
    for override in overrides:
        if not override.startswith(("eval.", "runtime.", "data.root")):
            raise UserError(
                f"--set {override}: only eval.*, runtime.* and data.root can be changed for an existing run"
            )
    return load_spec(str(path), overrides)


def checkpoint_of_run(path: Path, step: int | None) -> Path:
    """Return the checkpoint file of a step, or the newest one; raises `UserError` if it does not exist."""
    from harness.records.checkpoint import checkpoints, path_of

    found = checkpoints(path / "checkpoints")
    if not found:
        raise UserError(f"{path} has no checkpoint yet")
    file = found[-1] if step is None else path_of(path / "checkpoints", step)
    if file not in found:
        raise UserError(
            f"{path} has no checkpoint at step {step} (available: {', '.join(f.stem for f in found)})"
        )
    return file


def model_of_run(path: Path, spec: RunSpec, step: int | None) -> tuple[Path, SiT, torch.device]:
    """Return the checkpoint file of a step (None: the newest), its EMA network and the device."""
    from harness.data.open import open_dataset
    from harness.runtime.distributed import pick_device

    file = checkpoint_of_run(path, step)
    device = pick_device(spec.runtime.device)
    return file, load_ema(file, spec, open_dataset(spec.data), device), device


def load_ema(file: Path, spec: RunSpec, dataset: Dataset, device: torch.device) -> SiT:
    """Return the EMA network of a checkpoint file: the one that is evaluated."""
    from harness.assembly.build import backbone_config, build_backbone
    from harness.records import checkpoint

    model = build_backbone(backbone_config(spec, dataset), spec.runtime)
    model.load_state_dict(checkpoint.load(file).part("ema"))
    return model.to(device).requires_grad_(False).eval()
