"""The shift of times by the dimension of latents, which a table sets by the word `dimension`.

alpha = sqrt(m / n),    m = tokens x channels of a latent,    n = 4096

(RAE, arXiv 2510.11690; bytetriper/RAE a4d18c4, train.py, whose shift must be at least 1, as here). The spec
has the number, so the run id is that of a run with the same number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.config.data_spec import DataSpec
from harness.config.tables import merge, validate
from harness.errors import UserError

DIMENSION, BASE = "dimension", 4096
PLACES = (("time", "shift"), ("eval", "sampler_shift"))


# Any: raw tables.
def with_shifts(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a raw table with numbers in place of `dimension`.

    Raises `UserError` for a data set that is not of latents, and for latents of unknown shape.
    """
    asked = [(section, name) for section, name in PLACES if _value(data, section, name) == DIMENSION]
    if not asked:
        return dict(data)
    field = ".".join(asked[0])
    alpha = shift_of(_latent_shape(validate(DataSpec, data.get("data", {}), f"{where}: data"), field))
    numbers: dict[str, Any] = {}
    for section, name in asked:
        numbers[section] = {name: alpha}
    return merge(data, numbers)


def shift_of(shape: tuple[int, ...]) -> float:
    """Return the shift for latents of a shape (c, *places).

    >>> round(shift_of((768, 16, 16)), 3), shift_of((4, 32, 32))
    (6.928, 1.0)
    """
    return max(1.0, math.sqrt(math.prod(shape) / BASE))


def _value(data: Mapping[str, Any], section: str, name: str) -> Any:
    table = data.get(section)
    return table.get(name) if isinstance(table, Mapping) else None


def _latent_shape(spec: DataSpec, field: str) -> tuple[int, ...]:
    """Return the shape of latents: that of their folder, or the planned one if there is no folder."""
    if spec.name != "latents":
        raise UserError(
            f"{field} = '{DIMENSION}' is the dimension of latents, but data.name = '{spec.name}'; give a "
            "number, for example 3.0"
        )
    from harness.latents.codec import addressed
    from harness.latents.dataset import Latents
    from harness.latents.shards import MANIFEST, read_manifest

    root = Path(spec.root).expanduser()
    if spec.root and (root / MANIFEST).is_file():
        return tuple(read_manifest(root)["shape"])
    if spec.root and root.exists():
        raise UserError(
            f"{field} = '{DIMENSION}' needs the shape of the latents, but {root} has no {MANIFEST}; give a "
            "number, or import them with flowrace data import"
        )
    return Latents.outline(addressed(spec)).shape
