"""The search space of a method: its own dimensions, declared in its config, and those that a study adds for
every method.

A dimension is a table, `{ low = 1e-4, high = 1e-2, log = true }` or `{ choices = [1, 2, 4] }`. Two integer
bounds make an integer dimension. `points` is the number of values that a grid takes from a range.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from pydantic import Field, model_validator

from harness.config import registry
from harness.config.section import Section
from harness.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Number = int | float


class Dimension(Section):
    """One searched setting: a range or a list of choices."""

    low: Number | None = None
    high: Number | None = None
    log: bool = False
    points: int = Field(default=3, ge=2)
    # A choice may be any value that TOML has.
    choices: tuple[Any, ...] = ()

    @model_validator(mode="after")
    def _is_range_or_choices(self) -> Self:
        if (self.low is None) != (self.high is None) or (self.low is None) != bool(self.choices):
            raise ValueError("give either low and high, or choices")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"low = {self.low} must be below high = {self.high}")
        if self.log and (self.low is None or self.low <= 0):
            raise ValueError("log needs a range above 0")
        return self

    @property
    def bounds(self) -> tuple[Number, Number]:
        """Low and high of a range."""
        assert self.low is not None and self.high is not None
        return self.low, self.high

    @property
    def is_integer(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def grid(self) -> list[Any]:
        """Return the choices, or `points` values from low to high, evenly spaced (geometrically if `log`)."""
        if self.choices:
            return list(self.choices)
        spaced = (np.geomspace if self.log else np.linspace)(*self.bounds, self.points)
        return list(dict.fromkeys(round(v) if self.is_integer else float(v) for v in spaced))

    def distribution(self) -> BaseDistribution:
        """Return the dimension in Optuna's terms."""
        from optuna import distributions

        if self.choices:
            return distributions.CategoricalDistribution(self.choices)
        low, high = self.bounds
        if isinstance(low, int) and isinstance(high, int):
            return distributions.IntDistribution(low, high, log=self.log)
        return distributions.FloatDistribution(low, high, log=self.log)


SearchSpace = dict[str, Dimension]
"""Dimensions by the spec path that they set."""


def search_space(method: str, shared: Mapping[str, Dimension], own: Mapping[str, Dimension]) -> SearchSpace:
    """Return the study's shared space joined with the method's: `own` if the study gives one, else what the
    method declares.

    Raises `UserError` for an empty space.
    """
    declared = registry.load("method", method).Config.space
    particular = own or {f"method.{name}": Dimension.model_validate(dim) for name, dim in declared.items()}
    space = {**shared, **particular}
    if not space:
        raise UserError(
            f"{method} declares no search space; add dimensions for all methods under [tune.space], "
            'for example "train.learning_rate" = { low = 1e-4, high = 1e-2, log = true }'
        )
    return space
