"""The fields of a method's encoders in a spec as data, by dotted path.

A stack has a table for each term: REPA's `method.encoder.name` is `method.repa.encoder.name` in `repa+tread`.
Reports and plans read specs without the classes of methods, so the names are listed here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

RUN = "run"
"""The family of encoders that are flowrace runs."""
NOT_HASHED_OF_ENCODER = ("weights", "download")
"""Fields of an encoder that the run id leaves out."""
_ENCODER = re.compile(r"method\.(?:[^.]+\.)?(?:\w+_)?encoder\.(\w+)")
_OUTER = re.compile(r"(?:cached:|pca:[0-9]+:)+")
_FURTHER = re.compile(r"method\.(?:[^.]+\.)?further")


def names_run(name: str) -> bool:
    """Return whether an encoder is a flowrace run."""
    return name.startswith(f"{RUN}:")


def innermost(name: str) -> str:
    """Return the name of the network in an encoder that stores or compresses another's features.

    >>> innermost("cached:local:small"), innermost("pca:8:local:small"), innermost("local:small")
    ('local:small', 'local:small', 'local:small')
    """
    return _OUTER.sub("", name)


def located(name: str, weights: str) -> tuple[str, str]:
    """Return name and weights of an encoder, for `run:PATH` the run's id and its folder.

    So a moved folder changes no name, which is part of the ids of runs that it teaches.

    >>> located("run:runs/first/0123456789ab?layer=8", "")
    ('run:0123456789ab?layer=8', 'runs/first/0123456789ab')
    >>> located("run:0123456789ab", "elsewhere/0123456789ab"), located("local:small", "")
    (('run:0123456789ab', 'elsewhere/0123456789ab'), ('local:small', ''))
    """
    if not names_run(name):
        return name, weights
    path, mark, options = name.removeprefix(f"{RUN}:").partition("?")
    return f"{RUN}:{PurePath(path).name}{mark}{options}", weights or path


def locates_encoder(path: str) -> bool:
    """Return whether a field only locates the weights of an encoder, so that it cannot change results.

    >>> locates_encoder("method.encoder.weights"), locates_encoder("method.repa.encoder.download")
    (True, True)
    >>> locates_encoder("method.pooled_encoder.weights")
    True
    >>> locates_encoder("method.repa.encoder.name"), locates_encoder("eval.weights")
    (False, False)
    """
    found = _ENCODER.fullmatch(path)
    return bool(found) and found[1] in NOT_HASHED_OF_ENCODER


def lists_encoders(path: str) -> bool:
    """Return whether a field is the list of a method's further encoders, each a table.

    >>> lists_encoders("method.further"), lists_encoders("method.repa.further")
    (True, True)
    """
    return bool(_FURTHER.fullmatch(path))


# Any: values of fields.
def without_locations(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields without those that only locate an encoder's weights, in lists of encoders too."""
    kept = {path: value for path, value in fields.items() if not locates_encoder(path)}
    return kept | {path: _hashed(value) for path, value in kept.items() if lists_encoders(path)}


# Any: a method of another package may have a field of this name with other values.
def _hashed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: item for name, item in value.items() if name not in NOT_HASHED_OF_ENCODER}
    return [_hashed(item) for item in value] if isinstance(value, list) else value


# Any: values of fields.
def encoder_name(fields: Mapping[str, Any]) -> str | None:
    """Return the name of a method's encoder, or of the first one of a stack; None if it has none.

    >>> encoder_name({"method.name": "repa+tread", "method.repa.encoder.name": "local:small"})
    'local:small'
    """
    return next((fields[path] for path in _name_paths(fields) if fields.get(path)), None)


# Any: values of fields.
def encoder_weights_field(fields: Mapping[str, Any], encoder: str) -> str:
    """Return the field that locates the weights of an encoder, given by name.

    >>> spec = {"method.name": "repa+tread", "method.repa.encoder.name": "timm:vit"}
    >>> encoder_weights_field(spec, "timm:vit")
    'method.repa.encoder.weights'
    >>> spec = {"method.encoder.name": "timm:vit", "method.further": [{"name": "open_clip:vit"}]}
    >>> encoder_weights_field(spec, "open_clip:vit")
    'weights in method.further'
    """
    named = [
        path
        for path, value in fields.items()
        if value == encoder and (found := _ENCODER.fullmatch(path)) and found[1] == "name"
    ]
    lists = [path for path in fields if lists_encoders(path)]
    if lists and not named:
        return f"weights in {lists[0]}"
    return (named or ["method.encoder.name"])[0].replace(".name", ".weights")


# Any: values of fields.
def _name_paths(fields: Mapping[str, Any]) -> list[str]:
    """Return the paths of the name of a method's encoder, or of that of each term of a stack."""
    terms = str(fields.get("method.name", "")).split("+")
    return ["method.encoder.name", *(f"method.{term}.encoder.name" for term in terms)]
