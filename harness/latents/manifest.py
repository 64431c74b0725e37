"""The types of the fields of latents.json, which may come from a stranger.

Fields that are not listed are left as they are.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from harness.errors import UserError
from harness.files.names import check_name

Numbers = float | list[float]


class _Fields(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class _Codec(_Fields):
    name: str
    scale: Numbers
    shift: Numbers = 0.0


class _Linked(_Fields):
    root: str
    dtype: str
    files: dict[str, str]


class _Manifest(_Fields):
    # Any: the fields of a spec.
    source: dict[str, Any]
    codec: _Codec
    samples: PositiveInt
    classes: PositiveInt
    pixels: list[PositiveInt]
    shape: Annotated[list[PositiveInt], Field(min_length=2)]
    copies: PositiveInt
    rows: PositiveInt
    files: dict[str, str]
    linked: _Linked | None = None
    class_names: list[str] = []
    label_source: str = ""
    label_problem: str = ""


# Any: a value of JSON.
def check_fields(manifest: Any, where: str) -> None:
    """Raise `UserError` for a manifest that lacks a field, or has one of another type."""
    try:
        fields = _Manifest.model_validate(manifest)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the content"
        raise UserError(f"{where} is damaged: {field}: {first['msg']}") from error
    for name in fields.files:
        check_name(name, f"{where}: a name in files")
