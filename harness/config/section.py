"""The base of every section of a spec, the marks of fields that the run id leaves out, and the limits of
numbers."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

NOT_HASHED: JsonDict = {"hashed": False}
"""`json_schema_extra` of a field that cannot change results, such as a path or a number of workers. It is not
part of the run id."""
HASHED_IF_SET: JsonDict = {"hashed": "unless default"}
"""`json_schema_extra` of a field that was added later. At its default it is not part of the run id, so that
older runs keep their ids."""

LARGEST = 1e300
"""Numbers of a list are below it; a float has no much larger ones."""
SIDE, COUNT, STEPS = 2**16, 10**7, 10**12
"""Largest sides, numbers of samples and numbers of steps; larger ones are mistakes that need all memory."""


class Section(BaseModel):
    """Base of every model in a spec."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


# Any: the default is of the field's type, and the limits are those that pydantic's Field takes.
def unhashed(default: Any, **limits: Any) -> Any:
    """Return a field that cannot change results, and so is not part of the run id."""
    return Field(default, json_schema_extra=NOT_HASHED, **limits)
