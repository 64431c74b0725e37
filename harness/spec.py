"""The spec of a run: frozen, validated, canonical, and addressed by the hash of what can change its results.

A preset or a user's TOML file gives fields by section. Precedence: defaults < `base` preset < file < overrides. A table
`[methods.NAME]` holds fields that apply when that method is the one chosen, so that one file can serve every arm of a race.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError

from harness import registry
from harness.backbone.sizes import SIZES
from harness.errors import UserError, unknown

NOT_HASHED = {"hashed": False}
"""`json_schema_extra` of a field that cannot change results (a path, a worker count): it stays out of the run id."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _free(default: Any, **limits: Any) -> Any:
    return Field(default, json_schema_extra=NOT_HASHED, **limits)


class DataSpec(Section):
    """What is learned. `root` is only where it lies; its content is told by `fingerprint`, filled in when root is there."""

    name: str = "digits"
    root: str = _free("")
    fingerprint: str = ""
    resolution: int | None = Field(None, ge=1)
    """Side in pixels after resize of the shorter side and centre crop; None keeps the images' own size."""
    channels: Literal[1, 3] | None = None
    held_out: float = Field(0.1, ge=0, lt=1)
    flip: bool = False
    image_key: str = ""
    label_key: str = ""
    """Names of the arrays or columns; empty means: find them."""
    workers: int = _free(0, ge=0)


class BackboneSpec(Section):
    size: str = "S"
    patch: int = Field(2, ge=1)
    learn_sigma: bool = False

    @property
    def depth(self) -> int:
        return SIZES[self.size].depth


class TimeSpec(Section):
    """p(t), the same for every method."""

    kind: Literal["uniform", "logit_normal"] = "uniform"
    mean: float = 0.0
    std: float = Field(1.0, gt=0)
    """Of the normal whose sigmoid is t (logit_normal only)."""
    shift: float = Field(1.0, gt=0)
    """alpha of s(alpha, t) = alpha t / (1 + (alpha - 1) t); above 1 is more noise."""


class TrainSpec(Section):
    steps: int = Field(400_000, ge=1)
    batch_size: int = Field(256, ge=1)
    learning_rate: float = Field(1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    warmup_steps: int = Field(0, ge=0)
    """Linear warm-up of the learning rate."""
    clip: float = Field(1.0, gt=0)
    """Largest gradient norm."""
    label_drop: float = Field(0.1, ge=0, le=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    accumulate: int = _free(1, ge=1)
    """Micro-batches per step and process: the same batch, less memory."""
    checkpoint_every: int = _free(10_000, ge=1)
    keep_checkpoints: int = _free(2, ge=1)
    log_every: int = _free(100, ge=1)


class EmaSpec(Section):
    """One exponential moving average per run: the teacher and the model that is evaluated."""

    decay: float = Field(0.9999, ge=0, lt=1)
    warmup: bool = False
    """Use min(decay, (1 + step) / (10 + step)), for short runs."""


class EvalSpec(Section):
    every: int = Field(50_000, ge=1)
    samples: int = Field(10_000, ge=2)
    metrics: tuple[str, ...] = ("fd:local",)
    sampler: Literal["euler", "heun", "euler_maruyama"] = "euler_maruyama"
    sampler_steps: int = Field(250, ge=1)
    guidance: float = Field(1.0, ge=0)
    guidance_low: float = Field(0.0, ge=0, le=1)
    guidance_high: float = Field(1.0, ge=0, le=1)
    labels: Literal["balanced", "random"] = "random"
    seed: int = Field(0, ge=0)
    batch_size: int = _free(256, ge=1)
    grid: int = _free(40, ge=1)
    """Images in the sample grid."""


class RuntimeSpec(Section):
    """Where and how it runs. None of it belongs to the run id."""

    device: str = _free("auto")
    threads: int = _free(0, ge=0)
    """CPU threads of one process; 0 takes all cores."""
    compile: bool = _free(False)


class RunSpec(Section):
    seed: int = Field(0, ge=0)
    data: DataSpec = DataSpec()
    backbone: BackboneSpec = BackboneSpec()
    method: SerializeAsAny[BaseModel]
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


def preset_names() -> list[str]:
    return sorted(
        file.name.removesuffix(".toml") for file in _presets().iterdir() if file.name.endswith(".toml")
    )


def preset_summary(name: str) -> str:
    """The line of prose on top of a preset."""
    return (_presets() / f"{name}.toml").read_text().splitlines()[0].lstrip("# ")


def load_spec(source: str, overrides: Iterable[str] = ()) -> RunSpec:
    """The resolved spec of a preset name, a TOML file or a run directory, with overrides `a.b=v` (v as in TOML).

    Raises `UserError` for anything unknown, of the wrong type or out of range, with the nearest match.
    """
    data = load_table(source)
    for override in overrides:
        set_path(data, *parse_override(override))
    return resolve(data, where=source)


def load_table(source: str) -> dict[str, Any]:
    """The raw table of a preset, file or run directory, its `base` merged in."""
    path = Path(source)
    if path.is_dir():
        path = path / "spec.toml"
    if path.suffix == ".toml" or path.is_file():
        data = read_toml(path)
    elif source in preset_names():
        data = tomllib.loads((_presets() / f"{source}.toml").read_text())
    else:
        raise unknown("preset", source, preset_names(), see="flowrace list presets, or give a .toml file")
    base = data.pop("base", None)
    return merge(load_table(base), data) if base is not None else data


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def resolve(data: Mapping[str, Any], *, where: str = "spec") -> RunSpec:
    """Validate a raw table and fill in every default, those that depend on method and backbone included."""
    data = dict(data)
    per_method = data.pop("methods", {})
    chosen = data.pop("method", {})
    if not isinstance(chosen, Mapping) or not isinstance(per_method, Mapping):
        raise UserError(f'{where}: method must be a table, as in [method] name = "flow"')
    name = chosen.get("name", "flow")
    method = registry.load("method", str(name))
    config = validate(
        method.Config, merge(per_method.get(name, {}), {**chosen, "name": name}), f"{where}: method"
    )
    spec = validate(RunSpec, {**data, "method": {}}, where)
    if spec.backbone.size not in SIZES:
        raise unknown("backbone.size", spec.backbone.size, SIZES)
    registry.load("dataset", spec.data.name)
    try:
        config = config.resolved(spec.backbone)
    except ValueError as error:
        raise UserError(f"{where}: method.{error}") from error
    spec = spec.model_copy(update={"method": config})
    _check(spec, where)
    return spec


def parse_override(text: str) -> tuple[str, Any]:
    """`a.b=v` as a path and a value; v is read as TOML, and as a plain string where it is not TOML."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip() or not all(path.strip().split(".")):
        raise UserError(f"--set {text}: expected a.b=value, as in --set train.steps=100")
    try:
        return path.strip(), tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return path.strip(), value


def set_path(data: dict[str, Any], path: str, value: Any) -> None:
    """Set a value at a dotted path in nested tables, in place; raises `UserError` where the path meets a value."""
    *parents, last = path.split(".")
    for name in parents:
        data = data.setdefault(name, {})
        if not isinstance(data, dict):
            raise UserError(f"{path}: '{name}' is a value, not a table")
    data[last] = value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested tables as one; where both have a value, `over` wins."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _check(spec: RunSpec, where: str) -> None:
    """What no single field can know."""
    encoder = spec.method.needs().encoder
    aligned = encoder and encoder.name
    if aligned and f"fd:{aligned}" in spec.eval.metrics:
        raise UserError(
            f"{where}: eval.metrics has 'fd:{aligned}', but method '{spec.method.name}' aligns to that very encoder, "
            "so the metric would reward the alignment itself; measure with another extractor, as 'fd:local'"
        )
    if spec.eval.guidance_low > spec.eval.guidance_high:
        raise UserError(f"{where}: eval.guidance_low = {spec.eval.guidance_low} is above eval.guidance_high")


def validate(model: type[BaseModel], data: Mapping[str, Any], where: str) -> Any:
    """Validate as JSON (lists may be tuples, integers floats, nothing else is coerced), with our sentences."""
    try:
        return model.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        raise UserError(
            "; ".join(_sentence(model, detail, where) for detail in error.errors()[:5])
        ) from error


def _sentence(model: type[BaseModel], detail: Mapping[str, Any], where: str) -> str:
    path = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = _fields_at(model, detail["loc"][:-1])
        near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        return f"{where}: unknown key '{path}' (known here: {', '.join(known)}).{hint}"
    if detail["type"] == "missing":
        return f"{where}: {path} is missing"
    message = detail["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return f"{where}: {path} = {json.dumps(detail['input'], default=str)}: {message}"


def _fields_at(model: type[BaseModel], loc: Iterable[Any]) -> list[str]:
    for part in loc:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        tables = [
            a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)
        ]
        if not tables:
            return []
        model = tables[0]
    return sorted(model.model_fields)


def _hashed(model: BaseModel) -> dict[str, Any]:
    kept = {}
    for name, info in type(model).model_fields.items():
        value = getattr(model, name)
        if (info.json_schema_extra or {}) == NOT_HASHED:
            continue
        if isinstance(value, BaseModel):
            if nested := _hashed(value):
                kept[name] = nested
        else:
            kept[name] = value
    return kept


def _without_none(value: Any) -> Any:
    """TOML has no null: a field that is None is left out, which reads back as its default, None."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value


def _presets() -> Any:
    return resources.files("harness") / "presets"
