"""The resolution of a preset, a TOML file or a run, with overrides, into a spec.

A preset or a user's TOML file sets fields by section. Precedence: defaults < `base` preset < file <
overrides. A table `[methods.NAME]` holds fields that apply only if that method is chosen, so that one file
can serve every arm of a race.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from harness.assembly.dimension_shift import with_shifts
from harness.backbone.sizes import SIZES, TEXT_TO_IMAGE, size_named
from harness.config import registry
from harness.config.data_spec import DataSpec, TextSpec
from harness.config.evaluation_spec import EvalSpec
from harness.config.fields import field_paths, in_words, nearest
from harness.config.method_config import MethodConfig
from harness.config.packaged import PackagedToml
from harness.config.parts import nested_setting, nested_spec
from harness.config.spec import RunSpec
from harness.config.tables import merge, parse_override, set_path, validate
from harness.config.training_spec import FlowSpec, OptimizerSpec, TrainSpec
from harness.errors import UserError, unknown
from harness.files.files import read_toml
from harness.records.flatten import flatten
from harness.records.record_chain import SPEC, check_spec

FLOAT32 = 3.4028234663852886e38
"""The largest number of float32."""
PRESETS = PackagedToml("harness", "presets")


def load_spec(source: str, overrides: Iterable[str] = ()) -> RunSpec:
    """Return the resolved spec of a preset, a TOML file or a run directory; overrides are `a.b=v`, v as in
    TOML.

    Raises `UserError` for unknown names (with the nearest match), wrong types and values out of range.
    """
    data = load_table(source)
    for override in overrides:
        set_path(data, *nested_setting(*parse_override(override)))
    return resolve(data, where=source)


def load_table(source: str) -> dict[str, Any]:
    """Return the raw table of a preset, a file or a run directory, with its `base` merged in.

    Raises `UserError` for a run directory whose spec was altered after the run wrote it.
    """
    path = Path(source)
    # A folder without a spec does not hide a preset of its name.
    if is_run(path) or (path.is_dir() and source not in PRESETS.names()):
        path = path / SPEC
    if path.suffix == ".toml" or path.is_file():
        data = read_toml(path)
        if is_run(Path(source)):
            check_spec(Path(source))
    elif source in PRESETS.names():
        data = PRESETS.table(source)
    else:
        raise unknown("preset", source, PRESETS.names(), see="flowrace list presets, or give a .toml file")
    if not data:
        raise UserError(f'{path} is empty: a spec sets at least its base, for example base = "digits"')
    data = nested_spec(data, source)
    base = data.pop("base", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise UserError(
            f'{source}: base = {base}: expected the name of a preset, or a file, for example base = "digits"'
        )
    return merge(load_table(base), data)


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run directory, which holds a spec."""
    return (folder / SPEC).is_file()


def resolve(data: Mapping[str, Any], *, where: str = "spec") -> RunSpec:
    """Validate a raw table and fill in every default, those that depend on method and backbone included."""
    data = with_shifts(data, where)
    per_method = data.pop("methods", {})
    chosen = _stacked(data.pop("method", {}), where)
    if not isinstance(chosen, Mapping) or not isinstance(per_method, Mapping):
        raise UserError(f'{where}: method must be a table, for example [method] name = "flow"')
    for named, table in per_method.items():
        if "+" in named:
            registry.load("method", named)
        elif named not in registry.METHODS and named not in (known := registry.names("method")):
            raise unknown(
                f"method in a table [methods.NAME] of {where}:", named, known, see="flowrace list methods"
            )
        if not isinstance(table, Mapping):
            raise UserError(f"{where}: methods.{named} = {table}: expected a table [methods.{named}]")
    name = chosen.get("name", "flow")
    method = registry.load("method", str(name))
    suggest = partial(_suggested, method.Config)
    settings = merge(_per_term(str(name), per_method), {**chosen, "name": name})
    config = validate(method.Config, settings, f"{where}: method", lambda path: suggest(f"method.{path}"))
    # The sections are checked first; the method is resolved below for the backbone.
    spec = validate(RunSpec, {**data, "method": {"name": config.name}}, where, suggest)
    if size_named(spec.backbone.size) is None:
        raise unknown("backbone.size", spec.backbone.size, {**SIZES, **TEXT_TO_IMAGE})
    dataset = registry.load("dataset", spec.data.name)
    try:
        config = config.resolved(spec.backbone)
    except ValueError as error:
        raise UserError(f"{where}: method.{error}") from error
    data_spec = _with_captions(_named_codec(spec.data), spec.text, dataset)
    named = {"data": data_spec, "eval": _addressed(spec.eval)}
    spec = spec.model_copy(update={"method": config, **named})
    undecoded = _undecoded(spec, dataset)
    if undecoded and "metrics" not in data.get("eval", {}):
        spec = spec.model_copy(update={"eval": _without_decoding(spec)})
    _check(spec, where, undecoded)
    return spec


# Any: raw tables.
def _stacked(method: Any, where: str) -> Any:
    """Return the table of a stack from a list of its terms' tables; anything else is returned unchanged."""
    if not isinstance(method, list):
        return method
    named = [term for term in method if isinstance(term, Mapping) and isinstance(term.get("name"), str)]
    if len(named) < len(method) or not method:
        raise UserError(
            f'{where}: method = {method}: a stack is a list of tables, for example [{{name = "repa"}}, '
            '{name = "tread"}]'
        )
    if len(method) == 1:
        return dict(method[0])
    tables = {term["name"]: dict(term) for term in named}
    return {"name": registry.stack_name(term["name"] for term in named), **tables}


def _per_term(name: str, per_method: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of `[methods.NAME]` for a method, or for each term of a stack."""
    if "+" not in name:
        return per_method.get(name, {})
    terms = {term: per_method[term] for term in name.split("+") if term in per_method}
    return merge(terms, per_method.get(name, {}))


def _suggested(method: type[MethodConfig], path: str) -> str:
    """Return the end of the message about an unknown field: the full path of the fields that may be meant."""
    found = in_words(nearest(path, field_paths(method)))
    return f"{found} See: flowrace spec" if found else ""


def _named_codec(spec: DataSpec) -> DataSpec:
    if not spec.codec:
        return spec
    from harness.latents.codec import addressed

    return addressed(spec)


# Any: a class of data sets from any package.
def _undecoded(spec: RunSpec, dataset: Any) -> str:
    """Return why the latents that a run generates cannot be decoded, empty if they can."""
    from harness.data.dataset import Capabilities

    able = Capabilities(dataset)
    return able.undecoded_in(spec.data) if able.undecoded_in else ""


def _without_decoding(spec: RunSpec) -> EvalSpec:
    """Return the evaluation with the metrics that latents have by default if they cannot be decoded."""
    from harness.evaluation.metric_table import HELD_OUT_LOSS

    measured = spec.data.held_out and not spec.method.needs().generates
    return spec.eval.model_copy(update={"metrics": (HELD_OUT_LOSS,) if measured else ()})


# Any: a class of data sets from any package.
def _with_captions(spec: DataSpec, text: TextSpec, dataset: Any) -> DataSpec:
    from harness.assembly.data_fields import with_captions

    return with_captions(spec, text, dataset)


def _addressed(spec: EvalSpec) -> EvalSpec:
    from harness.evaluation.metric_names import addressed

    return addressed(spec)


def _check(spec: RunSpec, where: str, undecoded: str) -> None:
    """Raise `UserError` if fields contradict each other or do not suit the data."""
    from harness.assembly.compatibility import Unsuited, unsuited
    from harness.assembly.condition import check_condition
    from harness.assembly.data_fields import check_fields
    from harness.evaluation.checks import check_metrics, check_undecoded
    from harness.evaluation.metric_table import HELD_OUT_LOSS

    _check_float32(spec, where)
    dataset, modality = registry.load("dataset", spec.data.name), _modality(spec)
    check_fields(spec.data, dataset, modality)
    check_condition(spec, where)
    if why := unsuited(spec, registry.load("method", spec.method.name), modality):
        raise Unsuited(why, where)
    _check_start(spec, modality, where)
    if spec.train.log_gradients_every and spec.runtime.shard:
        raise UserError(
            f"{where}: train.log_gradients_every = {spec.train.log_gradients_every} does not support "
            "runtime.shard = true, whose gradients no process has in full; set one of them to its default"
        )
    check_undecoded(spec.eval.metrics, undecoded, where)
    aligned = [encoder.name for encoder in spec.method.needs().encoders]
    # Until the data are read, only a share of zero is known to leave no sample.
    unseen = {} if spec.data.held_out else {"held_out": 0}
    captioned = bool(spec.text.encoder)
    check_metrics(spec.eval, dataset, modality, **unseen, captioned=captioned, encoders=aligned, where=where)
    if HELD_OUT_LOSS in spec.eval.metrics and spec.method.needs().generates:
        kept = json.dumps([name for name in spec.eval.metrics if name != HELD_OUT_LOSS] or ["fd:local"])
        raise UserError(
            f"{where}: eval.metrics '{HELD_OUT_LOSS}' does not support {spec.method.name}, whose network is "
            "given an encoder's output for the held-out sample itself, so that its loss is not comparable; "
            f"--set 'eval.metrics={kept}'"
        )
    _check_read(spec, where)
    _check_guidance(spec, where)


def _check_start(spec: RunSpec, modality: str, where: str) -> None:
    """Raise `UserError` for a start after the end, and for frozen layers that leave nothing to train."""
    from harness.assembly.compatibility import SEVERAL

    if spec.train.steps < spec.start.step:
        raise UserError(
            f"{where}: train.steps = {spec.train.steps}, but the run begins at start.step = "
            f"{spec.start.step}; give a larger number"
        )
    if not spec.start.frozen:
        return
    if modality not in SEVERAL:
        raise UserError(
            f"{where}: start.frozen = true trains the layers of further parts alone, but these data "
            f"({modality}) have one part; leave it out"
        )
    if not spec.start.given and not spec.start.arm:
        raise UserError(
            f"{where}: start.frozen = true freezes the weights of start.weights, which is empty; leave it "
            "out, or write: flowrace finetune RUN --frozen"
        )
    if spec.train.log_gradients_every:
        raise UserError(
            f"{where}: train.log_gradients_every = {spec.train.log_gradients_every} reads gradients of every "
            "block, which start.frozen = true does not train; set one of them to its default"
        )


def _check_read(spec: RunSpec, where: str) -> None:
    """Raise `UserError` for a setting of another choice than the one that is made, which would do nothing."""
    if spec.flow.weighting != "min_snr" and spec.flow.gamma != FlowSpec().gamma:
        raise UserError(
            f"{where}: flow.gamma = {spec.flow.gamma:g} is read only with flow.weighting = 'min_snr', and "
            f"this is '{spec.flow.weighting}'; leave it out"
        )
    if spec.train.decay != "inverse_sqrt" and spec.train.decay_after != TrainSpec().decay_after:
        raise UserError(
            f"{where}: train.decay_after = {spec.train.decay_after} is read only with train.decay = "
            f"'inverse_sqrt', and this is '{spec.train.decay}'; leave it out"
        )
    for name in ("momentum", "adjust_lr"):
        value = getattr(spec.optimizer, name)
        if spec.optimizer.name != "muon" and value != getattr(OptimizerSpec(), name):
            raise UserError(
                f"{where}: optimizer.{name} = {value} is read only with optimizer.name = 'muon', and this is "
                f"'{spec.optimizer.name}'; leave it out"
            )
    if spec.optimizer.name != "adamw" and spec.runtime.shard:
        raise UserError(
            f"{where}: optimizer.name = '{spec.optimizer.name}' does not support runtime.shard = true, whose "
            "processes hold rows of a matrix; set one of them to its default"
        )


def _check_guidance(spec: RunSpec, where: str) -> None:
    """Raise `UserError` for an empty interval of guidance, and for a guidance that the method lacks."""
    for name in ("guidance", "method_guidance"):
        low, high = getattr(spec.eval, f"{name}_low"), getattr(spec.eval, f"{name}_high")
        if low > high:
            raise UserError(
                f"{where}: eval.{name}_low = {low} is above eval.{name}_high = {high}; choose a lower one"
            )
    own = spec.eval.method_guidance
    if own != 1 and not registry.load("method", spec.method.name).guides:
        raise UserError(
            f"{where}: eval.method_guidance = {own}, but {spec.method.name} does not guide; "
            "leave it out (eval.guidance is classifier-free guidance)"
        )
    terms = spec.method.terms.items()
    guiding = {name: term.unguided for name, term in terms if registry.load("method", name).guides}
    if own != 1 and all(guiding.values()):
        name, reason = next(iter(guiding.items()))
        raise UserError(
            f"{where}: eval.method_guidance = {own}, but {name} {reason}, so nothing guides; leave it out, "
            "or change the settings of the method"
        )


def _check_float32(spec: RunSpec, where: str) -> None:
    """Raise `UserError` for a number that the networks' precision cannot hold."""
    for path, value in flatten(spec.model_dump()).items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and abs(number) > FLOAT32:
                raise UserError(
                    f"{where}: {path} = {number:g} does not fit float32; give at most {FLOAT32:.2g}"
                )


def _modality(spec: RunSpec) -> str:
    from harness.data.dataset import Capabilities
    from harness.data.parts import modality_of

    able = Capabilities(registry.load("dataset", spec.data.name))
    modality = able.modality_in(spec.data) if able.modality_in else able.modality
    return modality_of(modality, spec.data)
