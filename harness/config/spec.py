"""The spec of a run: frozen, validated, and addressed by a hash of its trajectory.

The trajectory is what can change the weights at a step: data, backbone, method, times, training and seed.
Evaluation is not part of it, and neither is `train.steps`, which is how far a run goes. So a run can be
extended, and measured in other ways later. harness/assembly/resolve.py combines presets, files and overrides
into a spec.

Each section has its own file, for example data_spec.py. Plug-ins import the names of all of them from here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Self

import tomli_w
from pydantic import BaseModel, Field, SerializeAsAny

from harness.config.backbone_spec import BackbonePart, BackboneParts, BackboneSpec
from harness.config.data_spec import DataPart, DataParts, DataSpec, TextSpec
from harness.config.evaluation_spec import EvalSpec, Scales
from harness.config.method_config import MethodConfig, Needs, Schedule
from harness.config.parts import HasParts, flattened
from harness.config.section import COUNT, HASHED_IF_SET, LARGEST, NOT_HASHED, SIDE, STEPS, Section, unhashed
from harness.config.training_spec import (
    DECAYS_TO_THE_END,
    Beta,
    EmaSpec,
    FlowSpec,
    OptimizerSpec,
    StartSpec,
    TimeSpec,
    TrainSpec,
)

__all__ = [
    "COUNT",
    "DECAYS_TO_THE_END",
    "HASHED_IF_SET",
    "LARGEST",
    "NOT_HASHED",
    "SIDE",
    "STEPS",
    "BackbonePart",
    "BackboneParts",
    "BackboneSpec",
    "Beta",
    "DataPart",
    "DataParts",
    "DataSpec",
    "EmaSpec",
    "EvalSpec",
    "FlowSpec",
    "MethodConfig",
    "Needs",
    "OptimizerSpec",
    "RunSpec",
    "RuntimeSpec",
    "Scales",
    "Schedule",
    "Section",
    "StartSpec",
    "TextSpec",
    "TimeSpec",
    "TrainSpec",
    "canonical",
]


class RuntimeSpec(Section):
    """Execution of a run. None of these fields is part of the run id."""

    device: str = unhashed("auto")
    """auto, cpu, cuda or cuda:N."""
    threads: int = unhashed(0, ge=0, le=SIDE)
    """CPU threads of one process; 0 for all cores."""
    compile: bool = unhashed(False)
    """Use torch.compile."""
    checkpoint_activations: bool = unhashed(False)
    """Recompute the blocks' activations in the backward pass: less memory, one more forward pass."""
    shard: bool = unhashed(False)
    """Shard parameters, optimizer and EMA over all processes (FSDP2) instead of keeping a copy in each."""


class RunSpec(Section):
    """Everything that defines a run."""

    seed: int = Field(default=0, ge=0, lt=2**64)
    """Seed of every random stream of the training run."""
    data: DataSpec = DataSpec()
    backbone: BackboneSpec = BackboneSpec()
    text: TextSpec = TextSpec()
    method: SerializeAsAny[MethodConfig]
    time: TimeSpec = TimeSpec()
    flow: FlowSpec = FlowSpec()
    train: TrainSpec = TrainSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    ema: EmaSpec = EmaSpec()
    start: StartSpec = StartSpec()
    eval: EvalSpec = EvalSpec()
    runtime: RuntimeSpec = RuntimeSpec()

    @property
    def id(self) -> str:
        """The run id: 12 hex digits of the sha256 of the trajectory."""
        return _short_hash(self.trajectory)

    @property
    def trajectory(self) -> dict[str, Any]:
        """The fields that can change the weights at a step, as JSON."""
        fields = _hashed(self)
        fields.pop("eval", None)
        if not self.horizon:
            fields.get("train", {}).pop("steps", None)
        return fields

    @property
    def horizon(self) -> str:
        """The setting that makes the number of steps part of the trajectory; empty if none does."""
        return "train.decay" if self.train.decay in DECAYS_TO_THE_END else self.method.horizon

    @property
    def legacy_id(self) -> str:
        """The run id of versions up to 0.1, which hashed evaluation and number of steps too, but not the
        content of an encoder's file."""
        fields = _hashed(self)
        # These versions knew one scale of guidance, and further ones need no new run.
        fields["eval"] |= {"guidance": self.eval.scale}
        return _short_hash(fields | {"method": _without(fields["method"], "content")})

    @property
    def by_guidance(self) -> tuple[Self, ...]:
        """The spec with its evaluation under each scale of guidance, in order."""
        return tuple(self.model_copy(update={"eval": one}) for one in self.eval.by_guidance)

    def to_toml(self) -> str:
        """Return the spec as the text of `spec.toml`."""
        return tomli_w.dumps(_without_none(self.model_dump(mode="json")))


# Any: nested tables of a spec as plain data.
def _without(value: Any, name: str) -> Any:
    """Return nested tables without the fields of a name."""
    if isinstance(value, Mapping):
        return {key: _without(item, name) for key, item in value.items() if key != name}
    return [_without(item, name) for item in value] if isinstance(value, list | tuple) else value


def canonical(spec: BaseModel) -> str:
    """Return the fields of a model that can change results, as JSON with sorted keys and no spaces."""
    return _canonical(_hashed(spec))


def _canonical(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _short_hash(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(fields).encode()).hexdigest()[:12]


def _hashed(model: BaseModel) -> dict[str, Any]:
    kept, unset = {}, model.unset if isinstance(model, EvalSpec) else ()
    for name, info in type(model).model_fields.items():
        value = getattr(model, name)
        if (info.json_schema_extra or {}) == NOT_HASHED:
            continue
        if info.json_schema_extra == HASHED_IF_SET and (value == info.default or name in unset):
            continue
        if isinstance(value, BaseModel):
            if nested := _hashed(value):
                kept[name] = nested
        elif isinstance(value, tuple):
            kept[name] = [_hashed(item) if isinstance(item, BaseModel) else item for item in value]
        else:
            kept[name] = value
    return flattened(kept, model.flat_names) if isinstance(model, HasParts) else kept


def _without_none(value: Any) -> Any:
    """Leave out fields without a value, because TOML has no null; they read back as their default."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value
