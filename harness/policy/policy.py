"""The policy of a run, loaded from its directory."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import ValidationError

from harness.acting.network_policy import DETERMINISTIC, NetworkPolicy
from harness.assembly.build import sampling_rule
from harness.assembly.resolve import is_run, load_spec
from harness.data.robot import FILE, Outline, RobotLayout
from harness.errors import UserError
from harness.files.files import read_text
from harness.records.checkpoint_files import NAME, step_of
from harness.train.trained_run import checkpoint_of_run, load_ema


def load_policy(
    run: Path | str, step: int | None = None, device: str | torch.device | None = None
) -> NetworkPolicy:
    """Return the policy of a run directory, or of one of its checkpoint files; `step` None is the newest.

    The device is `runtime.device` of the run unless another one is given. The demonstrations are not needed.
    Raises `UserError` for a run without actions.
    """
    from harness.runtime.distributed import pick_device

    path = Path(run)
    if NAME.match(path.name) and path.is_file():
        path, step = path.parent.parent, step_of(path)
    robot, spec = read_layout(path), load_spec(str(path))
    file, outline = checkpoint_of_run(path, step), Outline(robot)
    if spec.eval.sampler not in DETERMINISTIC:
        raise UserError(
            f"eval.sampler = {spec.eval.sampler} draws further noise, so equal noise would give other "
            f"actions; fine-tune with --set eval.sampler={DETERMINISTIC[0]}"
        )
    device = spec.runtime.device if device is None else device
    chosen = pick_device(device) if isinstance(device, str) else device
    model = load_ema(file, spec, outline, chosen)
    resizes = spec.data.resolution is not None
    return NetworkPolicy(model, robot, spec.eval, chosen, resizes, sampling_rule(spec, outline))


def read_layout(path: Path) -> RobotLayout:
    """Return the layout that a run stores. Raises `UserError` if it has none."""
    file = path / FILE
    if not is_run(path) or not file.is_file():
        raise UserError(
            f"{path} has no {FILE}, so it generates no actions; fine-tune it: flowrace finetune RUN "
            "--task TASK --demos DIR"
        )
    try:
        return RobotLayout.model_validate_json(read_text(file, "JSON"))
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise UserError(f"{file} is not the layout of a policy: {reason}; rerun the run's command") from error
