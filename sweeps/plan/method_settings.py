"""The settings of one run of a study, and the checks of the tables that name methods.

Precedence: preset < `[methods.NAME]` of the study < `[set]` < axes. In a stack of methods, the tables of its
terms come before its own.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from harness.config import registry
from harness.config.fields import field_paths, in_words, nearest
from harness.config.parts import nested_setting
from harness.config.tables import merge, set_path
from harness.errors import UserError, unknown
from harness.records.flatten import flatten
from sweeps.plan.study import Study


def settings_of_run(study: Study, preset: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the raw table of the run with these values on the axes."""
    layers = [*study.set.items(), *values.items()]
    method = _method_of(preset, layers)
    data = copy.deepcopy(dict(preset))
    for term in method.split("+") if "+" in method else ():
        own = study.methods.get(term, {})
        data = _with_method_settings(data, term, own, {term: own} if own else {})
    own = study.methods.get(method, {})
    data = _with_method_settings(data, method, own, own)
    for path, value in layers:
        set_path(data, *nested_setting(path, copy.deepcopy(value)))
    return data


def check_method_settings(study: Study) -> None:
    """Raise `UserError` for a table `[methods.NAME]` of an unknown method, and for an unknown field in it."""
    for name, settings in study.methods.items():
        if "+" not in name and name not in registry.names("method"):
            raise _no_method(study, name, registry.names("method"), see="flowrace list methods")
        config = registry.load("method", name).Config
        known = [path for path in field_paths(config) if path.startswith("method.")]
        for path in flatten(settings):
            if f"method.{path}" not in known:
                near = [one.removeprefix("method.") for one in nearest(f"method.{path}", known)]
                raise UserError(
                    f"study {study.name}: [methods.{name}] {path}: {name} has no such setting."
                    f"{in_words(near)} See: flowrace spec method.{name}"
                )


def check_used(study: Study, methods: Collection[str]) -> None:
    """Raise `UserError` for a table `[methods.NAME]` of a method that no arm has: it would do nothing."""
    for name in study.methods:
        if not _applies(name, methods):
            raise _no_method(study, name, methods, see="the axes of the study")


def restricted(study: Study, methods: Collection[str]) -> dict[str, Any]:
    """Return the tables that name methods, `methods` and `labels`, for a study of some of its methods."""
    return {
        "methods": {name: settings for name, settings in study.methods.items() if _applies(name, methods)},
        "labels": {name: text for name, text in study.labels.items() if method_in(name) in methods},
    }


def method_in(name: str) -> str:
    """Return the method in the name of an arm.

    >>> method_in("repa (layer = 2)"), method_in("repa")
    ('repa', 'repa')
    """
    return name.partition(" ")[0]


def _applies(name: str, methods: Collection[str]) -> bool:
    """Return whether a table `[methods.NAME]` is that of a method, or of a term of a stack."""
    return any(name == method or name in method.split("+") for method in methods)


def _no_method(study: Study, name: str, known: Iterable[str], *, see: str) -> UserError:
    return unknown(f"method in a table [methods.NAME] of study {study.name}:", name, known, see=see)


def check_labels(study: Study, methods: Collection[str]) -> None:
    """Raise `UserError` for a label of a method that no arm has, and for one label of two names.

    A name is a method, or an arm label that starts with one, for example `repa (layer = 2)`.
    """
    for name in study.labels:
        if method_in(name) not in methods:
            raise unknown(f"arm in [labels] of study {study.name}:", name, methods)
    by_label: dict[str, str] = {}
    for name, label in study.labels.items():
        if by_label.setdefault(label, name) != name:
            raise UserError(
                f"study {study.name}: [labels] shows '{by_label[label]}' and '{name}' as '{label}'; "
                "give each a different label"
            )


def _method_of(preset: Mapping[str, Any], layers: Collection[tuple[str, Any]]) -> str:
    chosen = preset.get("method", {})
    table: dict[str, Any] = {"method": dict(chosen) if isinstance(chosen, Mapping) else {}}
    for path, value in layers:
        if path.partition(".")[0] == "method":
            set_path(table, path, copy.deepcopy(value))
    # `resolve` reports a method that is no table.
    method = table["method"]
    return str(method.get("name", "flow")) if isinstance(method, Mapping) else ""


def _with_method_settings(
    data: dict[str, Any], method: str, settings: Mapping[str, Any], chosen: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a preset's table with the study's settings of a method instead of its own.

    A preset may set them in `[method]` too, where they are `chosen`. That is taken before `[methods.NAME]`,
    so they are removed there.
    """
    if not settings:
        return data
    per_method = data.get("methods", {})
    per_method = {**per_method, method: merge(per_method.get(method, {}), settings)}
    return {**data, "methods": per_method, "method": _without(data.get("method", {}), chosen)}


def _without(table: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table without the values that another one has."""
    kept = {}
    for key, value in table.items():
        if key not in other:
            kept[key] = value
        elif isinstance(value, Mapping) and isinstance(other[key], Mapping):
            kept[key] = _without(value, other[key])
    return kept
