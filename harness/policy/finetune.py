"""The spec of a policy: a generative run's network, fine-tuned on the demonstrations of a task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

# Any: tables of settings.
from typing import Any

from harness.assembly.resolve import PRESETS, is_run, load_spec, load_table, resolve
from harness.config.parts import nested_setting
from harness.config.spec import RunSpec
from harness.config.tables import merge, parse_override, set_path
from harness.errors import UserError
from harness.records import checkpoint
from harness.train.state import start_digest
from harness.train.trained_run import checkpoint_of_run

PRESET = "demos"
"""The preset of policies: training, evaluation, and the chunk of actions."""
OF_FRAMES, OF_DEMOS = ("resolution", "channels", "frames"), ("image_key", "chunk")
"""Fields of the data that a policy shares with the videos, or with the demonstrations, that its network was
trained on."""


def finetune_spec(
    source: str,
    demos: Path,
    task: str,
    *,
    step: int | None = None,
    from_scratch: bool = False,
    frozen: bool = False,
    overrides: Sequence[str] = (),
) -> RunSpec:
    """Return the spec of a policy on demonstrations, with the network of a run or of another spec.

    It starts from the EMA weights of the run at a step, by default the newest; `from_scratch` from initial
    ones, and `frozen` trains the layers of state and actions alone. Raises `UserError` for settings that
    contradict each other, and for a run without weights.
    """
    if from_scratch and (frozen or step is not None):
        option = "--frozen" if frozen else "--step"
        raise UserError(f"--from-scratch starts from initial weights, so leave out {option}")
    if not from_scratch and not is_run(Path(source)):
        if not Path(source).exists() and source not in PRESETS.names():
            raise UserError(f"no such run directory: {source}; give RUN, or a preset with --from-scratch")
        raise UserError(f"{source} is no run directory with weights; give RUN, or add --from-scratch")
    network = load_spec(source)
    own: dict[str, Any] = {
        "data": {"root": str(demos), "task": task},
        "backbone": network.backbone.model_dump(mode="json", exclude_none=True),
        "flow": {"prediction": network.flow.prediction},
        "seed": network.seed,
    }
    same = network.data.name == PRESET
    if same or not from_scratch:
        kept = {name: getattr(network.data, name) for name in (*OF_FRAMES, *(OF_DEMOS if same else ()))}
        own["data"] |= {name: value for name, value in kept.items() if value is not None}
    if not from_scratch:
        own["start"] = _start(Path(source), step, frozen)
    given: dict[str, Any] = {}
    for override in overrides:
        set_path(given, *nested_setting(*parse_override(override)))
    return resolve(merge(merge(load_table(PRESET), own), given), where="finetune")


def _start(run: Path, step: int | None, frozen: bool) -> dict[str, Any]:
    """Return the weights that the policy starts from."""
    file = checkpoint_of_run(run, step)
    weights = start_digest(checkpoint.load(file).part("ema"))
    return {"weights": weights, "file": str(file.resolve()), "layers": "shared", "frozen": frozen}
