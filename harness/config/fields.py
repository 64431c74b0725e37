"""The fields of a spec: type, default, limits, meaning, and which part of a run's identity each belongs to.

`flowrace spec`, the reference page and the suggestions of error messages read them here.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import itertools
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from harness.config.method_config import MethodConfig
from harness.config.section import HASHED_IF_SET, NOT_HASHED
from harness.config.spec import RunSpec

Belongs = Literal["trajectory", "evaluation", "horizon", "execution"]
MEANINGS: Mapping[Belongs, str] = {
    "trajectory": "can change the weights, so another value is another run",
    "evaluation": "is measured on a trajectory; another value needs no new training",
    "horizon": "is the length of the run; a larger value continues it",
    "execution": "cannot change results",
}
"""The parts of a run's identity, in words that follow the name of a field."""
InId = Literal["always", "if set", "never"]
HORIZON = "train.steps"
SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


@dataclass(frozen=True)
class SpecField:
    """A field of a spec."""

    path: str
    """Dotted path, in the form that `--set` takes."""
    type: str
    default: Any
    """Default as JSON data; None if the field is empty or is filled in later."""
    limits: str
    """For example `>= 0, < 1`; empty if any value of the type is allowed."""
    choices: tuple[str, ...]
    """The allowed values, if the type lists them."""
    belongs: Belongs
    in_id: InId
    """True if the field is part of the run id. A field that was added later is part of it only if set."""
    meaning: str


def spec_fields() -> list[SpecField]:
    """Return every field of a spec except those of `method`, in the order of the sections."""
    return list(_fields(RunSpec, None, ""))


def method_fields(config: type[MethodConfig]) -> list[SpecField]:
    """Return every setting of a method's Config, with paths `method.NAME`."""
    return list(_fields(config, None, "method."))


def belongs(path: str, method: type[MethodConfig] = MethodConfig) -> Belongs:
    """Return what a field of a spec belongs to; fields of `method` need the method's Config.

    >>> belongs("train.batch_size"), belongs("train.steps"), belongs("eval.guidance"), belongs("data.root")
    ('trajectory', 'horizon', 'evaluation', 'execution')
    """
    info = _find(path, method)
    if info is not None and info.json_schema_extra == NOT_HASHED:
        return "execution"
    if path == HORIZON:
        return "horizon"
    return "evaluation" if path.partition(".")[0] == "eval" else "trajectory"


def field_paths(method: type[MethodConfig] | None = None) -> list[str]:
    """Return the dotted path of every field, those of a method included if its Config is given."""
    models = [(RunSpec, ""), *([(method, "method.")] if method else [])]
    return [path for model, prefix in models for path, *_ in _walk(model, None, prefix)]


def nearest(path: str, known: Iterable[str]) -> list[str]:
    """Return the fields that a mistyped path may mean, the best ones only.

    A field of the same last name in another section comes first. Then a similar name in the same section, and
    last a similar name anywhere.

    >>> nearest("steps", ["train.steps", "eval.samples"]), nearest("train.stepz", ["train.steps"])
    (['train.steps'], ['train.steps'])
    """
    known = list(known)
    section, _, last = path.rpartition(".")
    same = [one for one in known if one.rpartition(".")[2] == last]
    if same:
        return difflib.get_close_matches(path, same, n=1, cutoff=0) if section else same
    inside = [one for one in known if section and one.rpartition(".")[0] == section]
    for candidates, cutoff in ((inside, 0.6), (known, 0.7)):
        by_last = {one.rpartition(".")[2]: one for one in reversed(candidates)}
        if close := difflib.get_close_matches(last, by_last, n=1, cutoff=cutoff):
            return [by_last[close[0]]]
    return []


def in_words(candidates: Iterable[str]) -> str:
    """Return the question of an error message: one candidate, or several; empty without any.

    >>> in_words(["train.steps"]), in_words(["train.batch_size", "eval.batch_size"])
    (" Did you mean 'train.steps'?", " Did you mean 'train.batch_size' or 'eval.batch_size'?")
    """
    quoted = [f"'{path}'" for path in candidates]
    return f" Did you mean {' or '.join(quoted)}?" if quoted else ""


def section_text(section: str) -> str:
    """Return the description of a section, for example `train`; empty if it has none."""
    model: type[BaseModel] = RunSpec
    for name in filter(None, section.split(".")):
        inner = _model(model.model_fields[name].annotation)
        assert inner is not None, section
        model = inner
    return inspect.cleandoc(model.__doc__ or "") if section and "__doc__" in vars(model) else ""


def _fields(model: type[BaseModel], instance: BaseModel | None, prefix: str) -> Iterator[SpecField]:
    for path, owner, name, info, default in _walk(model, instance, prefix):
        config = model if issubclass(model, MethodConfig) else MethodConfig
        yield SpecField(
            path=path,
            type=type_in_words(info.annotation),
            default=default,
            limits=_limits(info),
            choices=_choices(info.annotation),
            belongs=belongs(path, config),
            in_id=_in_id(info),
            meaning=_meanings(owner).get(name, ""),
        )


def _walk(
    model: type[BaseModel], instance: BaseModel | None, prefix: str
) -> Iterator[tuple[str, type[BaseModel], str, FieldInfo, Any]]:
    """Yield every field with a value: path, model, name, definition and default."""
    for name, info in model.model_fields.items():
        if model is RunSpec and name == "method":
            continue
        default = _default(info) if instance is None else getattr(instance, name)
        inner = _model(info.annotation)
        if inner is not None:
            yield from _walk(inner, default if isinstance(default, BaseModel) else None, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", model, name, info, _as_json(default)


def _find(path: str, method: type[MethodConfig]) -> FieldInfo | None:
    model: type[BaseModel] | None = RunSpec
    info = None
    for name in path.split("."):
        if model is None or name not in model.model_fields:
            return None
        info = model.model_fields[name]
        model = method if model is RunSpec and name == "method" else _model(info.annotation)
    return info


# Any: a default is of the field's type.
def _default(info: FieldInfo) -> Any:
    return None if info.is_required() else info.get_default(call_default_factory=True)


def _as_json(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return [_as_json(item) for item in value] if isinstance(value, tuple) else value


# Any: an annotation may be a type, an alias or a union.
def _model(annotation: Any) -> type[BaseModel] | None:
    """Return the model of a section; None for the annotation of a value."""
    return annotation if inspect.isclass(annotation) and issubclass(annotation, BaseModel) else None


def type_in_words(annotation: Any) -> str:
    """Return a type as text.

    >>> type_in_words(int | None), type_in_words(tuple[str, ...]), type_in_words(Literal["a", "b"])
    ('int or none', 'list of str', 'choice')
    """
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_in_words(inner[0])
    if origin is Literal:
        return "choice"
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_in_words(part) for part in inner))
    if origin is tuple:
        number = "" if inner[-1] is Ellipsis else f"{len(inner)} "
        return f"list of {number}{type_in_words(inner[0])}"
    if origin is dict:
        return f"table of {type_in_words(inner[1])}"
    if annotation is type(None):
        return "none"
    return "table" if _model(annotation) else getattr(annotation, "__name__", str(annotation)).lower()


def _choices(annotation: Any) -> tuple[str, ...]:
    if get_origin(annotation) is Literal:
        return tuple(str(value) for value in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        return tuple(choice for part in get_args(annotation) for choice in _choices(part))
    return ()


def _in_id(info: FieldInfo) -> InId:
    if info.json_schema_extra == NOT_HASHED:
        return "never"
    return "if set" if info.json_schema_extra == HASHED_IF_SET else "always"


def _limits(info: FieldInfo) -> str:
    own = _signs(info.metadata)
    items = get_args(info.annotation)[:1] if get_origin(info.annotation) is tuple else ()
    each = [
        _signs(part.metadata) for item in items for part in get_args(item)[1:] if isinstance(part, FieldInfo)
    ]
    return own or next((f"each {limits}" for limits in each), "")


def _signs(metadata: Iterable[object]) -> str:
    # Each constraint has one of these attributes.
    found = (
        (SIGNS[name], getattr(limit, name)) for limit in metadata for name in SIGNS if hasattr(limit, name)
    )
    return ", ".join(f"{sign} {value}" for sign, value in found)


@cache
def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """Return the docstring of each field from the source, inherited fields included."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if not issubclass(cls, BaseModel) or cls is BaseModel:
            continue
        body = _body(cls)
        for line, after in itertools.zip_longest(body, body[1:]):
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                text = _docstring(after)
                # A subclass that only narrows a type keeps the description.
                found[line.target.id] = text or found.get(line.target.id, "")
    return found


def _body(cls: type) -> list[ast.stmt]:
    """Return the definition of a class, which may be inside another class.

    It is empty for a class made in a function, or without a source file, as a plug-in's may be.
    """
    try:
        body = _tree(inspect.getfile(cls)).body
    except (OSError, TypeError, SyntaxError):
        return []
    for name in cls.__qualname__.split("."):
        inner = (node.body for node in body if isinstance(node, ast.ClassDef) and node.name == name)
        body = next(inner, [])
    return body


@cache
def _tree(file: str) -> ast.Module:
    return ast.parse(Path(file).read_text(encoding="utf-8"))


def _docstring(line: ast.stmt | None) -> str:
    if isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant):
        return " ".join(str(line.value.value).split())
    return ""
