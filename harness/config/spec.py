"""The spec of a run: frozen, validated, canonical, and addressed by the hash of what can change its results.

See harness/assembly/resolve.py for how presets, files and overrides are combined into a spec.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny
from pydantic.config import JsonDict

from harness.backbone.sizes import SIZES
from harness.config.parts import FLAT_NAMES, HasParts, flattened

NOT_HASHED: JsonDict = {"hashed": False}
"""`json_schema_extra` of a field that cannot change results (a path, a worker count): it is not part of the run id."""
HASHED_IF_SET: JsonDict = {"hashed": "unless default"}
"""`json_schema_extra` of a field added later: at its default it is not part of the run id, so that older runs keep their ids."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _free(default: Any, **limits: Any) -> Any:
    return Field(default, json_schema_extra=NOT_HASHED, **limits)


class DataPart(Section):
    """One part of a sample that has several, for example the sound of a video."""

    weight: float = Field(default=0.5, ge=0, json_schema_extra=HASHED_IF_SET)
    """Of the part in the loss; 0 removes the part from the data."""
    alone: float = Field(default=0.0, ge=0, le=1, json_schema_extra=HASHED_IF_SET)
    """Share of the training samples that consist of this part only."""


class DataParts(Section):
    video: DataPart = DataPart()
    audio: DataPart = DataPart()

    def of(self, kind: str) -> DataPart:
        return dict(self)[kind]


class DataSpec(Section, HasParts):
    """The training data. `root` is only a location; `fingerprint` identifies the content and is filled in when `root` exists."""

    flat_names: ClassVar = FLAT_NAMES["data"]

    if TYPE_CHECKING:
        # pydantic adds it to a frozen model.
        def __hash__(self) -> int: ...

    name: str = "digits"
    root: str = _free("")
    fingerprint: str = ""
    resolution: int | None = Field(default=None, ge=1)
    """Side in pixels after resize of the shorter side and centre crop; None keeps the images' own size."""
    channels: Literal[1, 3] | None = None
    parts: DataParts = DataParts()
    """Of a video with its sound."""
    held_out: float = Field(default=0.1, ge=0, lt=1)
    flip: bool = False
    image_key: str = ""
    label_key: str = ""
    """Names of the arrays or columns; empty: found by the usual names."""
    frames: int | None = Field(default=None, ge=1, json_schema_extra=HASHED_IF_SET)
    """Frames of a video, or log-mel frames of a recording; None: the data set's default."""
    classes: int | None = Field(default=None, ge=1, json_schema_extra=HASHED_IF_SET)
    """Number of classes of latents, for a plan without data."""
    posterior: Literal["sample", "mean"] = Field(default="sample", json_schema_extra=HASHED_IF_SET)
    """Latents are sampled each time they are read, or are the mean."""
    codec: str = Field(default="", json_schema_extra=HASHED_IF_SET)
    """Codec that decodes latents, `family:PATH`; empty: the codec that encoded them."""
    codec_weights: str = _free("")
    images: str = _free("")
    """Location of the images that latents were encoded from, if they have been moved."""
    workers: int = _free(0, ge=0)


class BackbonePart(Section):
    patch: int = Field(default=1, ge=1, json_schema_extra=HASHED_IF_SET)
    """Spectrogram frames in one token of the sound that comes with a video."""


class BackboneParts(Section):
    """The parts of a sample after the first, which `patch` and `patch_time` of the backbone divide."""

    audio: BackbonePart = BackbonePart()

    def of(self, kind: str) -> BackbonePart:
        return dict(self)[kind]


class BackboneSpec(Section, HasParts):
    flat_names: ClassVar = FLAT_NAMES["backbone"]

    size: str = "S"
    patch: int = Field(default=2, ge=1)
    """Side of a token in pixels, or its length in spectrogram frames for sound."""
    patch_time: int = Field(default=1, ge=1, json_schema_extra=HASHED_IF_SET)
    """Frames of a video in one token."""
    parts: BackboneParts = BackboneParts()
    learn_sigma: bool = False
    positions: Literal["sincos", "rotary"] = Field(default="sincos", json_schema_extra=HASHED_IF_SET)
    """Position code added to the tokens, as released, or rotation of queries and keys in every block."""

    @property
    def depth(self) -> int:
        return SIZES[self.size].depth


class TimeSpec(Section):
    """p(t), the same for every method."""

    kind: Literal["uniform", "logit_normal"] = "uniform"
    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)
    """Standard deviation of the normal whose sigmoid is t (logit_normal only)."""
    shift: float = Field(default=1.0, gt=0)
    """alpha of s(alpha, t) = alpha t / (1 + (alpha - 1) t); above 1 is more noise."""
    late: float = Field(default=0.0, ge=0, le=1, json_schema_extra=HASHED_IF_SET)
    """Share of samples whose time is uniform on [0.95, 1] instead (Self-Flow App. A.2, video: 0.05)."""
    apart: bool = Field(default=False, json_schema_extra=HASHED_IF_SET)
    """Draw a separate time for each part of a video with its sound."""


Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainSpec(Section):
    steps: int = Field(default=400_000, ge=1)
    batch_size: int = Field(default=256, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    """Linear warm-up of the learning rate."""
    clip: float = Field(default=1.0, gt=0)
    """Largest gradient norm."""
    label_drop: float = Field(default=0.1, ge=0, le=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    accumulate: int = _free(1, ge=1)
    """Micro-batches per step and process: the same batch with less memory."""
    checkpoint_every: int = _free(10_000, ge=1)
    keep_checkpoints: int = _free(2, ge=1)
    log_every: int = _free(100, ge=1)


class EmaSpec(Section):
    """One exponential moving average per run: the teacher and the model that is evaluated."""

    decay: float = Field(default=0.9999, ge=0, lt=1)
    warmup: bool = False
    """Use min(decay, (1 + step) / (10 + step)), for short runs."""


class EvalSpec(Section):
    every: int = Field(default=50_000, ge=1)
    samples: int = Field(default=10_000, ge=2)
    metrics: tuple[str, ...] = ("fd:local",)
    sampler: Literal["euler", "heun", "euler_maruyama"] = "euler_maruyama"
    sampler_steps: int = Field(default=250, ge=1)
    precision: Literal["float32", "bfloat16"] = Field(default="float32", json_schema_extra=HASHED_IF_SET)
    """Precision of the network during sampling."""
    guidance: float = Field(default=1.0, ge=0)
    guidance_low: float = Field(default=0.0, ge=0, le=1)
    guidance_high: float = Field(default=1.0, ge=0, le=1)
    labels: Literal["balanced", "random"] = "random"
    seed: int = Field(default=0, ge=0)
    replicates: int = Field(default=1, ge=1, json_schema_extra=HASHED_IF_SET)
    """Evaluations per step, each with separate latents and labels: their mean, and its interval for 2 or more."""
    weights: dict[str, str] = _free({})
    """Weights file by extractor, if the name of the extractor does not give it."""
    batch_size: int = _free(256, ge=1)
    grid: int = _free(40, ge=1)
    """Images in the sample grid."""


class RuntimeSpec(Section):
    """Where and how a run is executed. Nothing here is part of the run id."""

    device: str = _free("auto")
    threads: int = _free(0, ge=0)
    """CPU threads of one process; 0: all cores."""
    compile: bool = _free(False)
    checkpoint_activations: bool = _free(False)
    """Recompute the activations of the blocks in the backward pass: less memory, one more forward pass."""
    shard: bool = _free(False)
    """Shard parameters, optimizer and EMA over all processes (FSDP2) instead of keeping a copy in each."""


class MethodSettings(BaseModel):
    """What a spec knows of a method's `Config`: each method declares its fields (methods.common.method.MethodConfig)."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    name: str = ""

    # Any: `Needs` is declared by the package of methods, which imports this one.
    def needs(self) -> Any:
        """Return what the method asks of the trainer."""
        raise NotImplementedError

    def encodes(self, step: int) -> bool:
        """Return whether the encoders run at a step (1-based)."""
        raise NotImplementedError


class RunSpec(Section):
    seed: int = Field(default=0, ge=0)
    data: DataSpec = DataSpec()
    backbone: BackboneSpec = BackboneSpec()
    method: SerializeAsAny[MethodSettings]
    time: TimeSpec = TimeSpec()
    train: TrainSpec = TrainSpec()
    ema: EmaSpec = EmaSpec()
    eval: EvalSpec = EvalSpec()
    runtime: RuntimeSpec = RuntimeSpec()

    @property
    def id(self) -> str:
        """12 hex digits of the sha256 of the canonical JSON."""
        return hashlib.sha256(canonical(self).encode()).hexdigest()[:12]

    def to_toml(self) -> str:
        return tomli_w.dumps(_without_none(self.model_dump(mode="json")))


def canonical(spec: BaseModel) -> str:
    """The fields that can change results, as JSON with sorted keys and no spaces: the text that a run id hashes."""
    return json.dumps(_hashed(spec), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _hashed(model: BaseModel) -> dict[str, Any]:
    kept = {}
    for name, info in type(model).model_fields.items():
        value = getattr(model, name)
        if (info.json_schema_extra or {}) == NOT_HASHED:
            continue
        if info.json_schema_extra == HASHED_IF_SET and value == info.default:
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
    """TOML has no null: a field that is None is left out, which reads back as its default, None."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value
