"""Where a method's settings are searched: what it declares beside its config, and what a study asks of all methods alike.

A dimension is a table, `{ low = 1e-4, high = 1e-2, log = true }` or `{ choices = [1, 2, 4] }`; two whole numbers are searched
over whole numbers. `points` is how many values a grid takes of a range.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from harness.config import registry
from harness.config.spec import Section
from harness.errors import UserError

Number = int | float


class Dimension(Section):
    """One searched setting: a range or a list of choices."""

    low: Number | None = None
    high: Number | None = None
    log: bool = False
    points: int = Field(3, ge=2)
    choices: tuple[Any, ...] = ()

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        ranged = self.low is not None and self.high is not None
        if ranged == bool(self.choices) or (self.low is None) != (self.high is None):
            raise ValueError("give either low and high, or choices")
        if ranged and not self.low < self.high:
            raise ValueError(f"low = {self.low} must be below high = {self.high}")
        if self.log and (not ranged or self.low <= 0):
            raise ValueError("log needs a range above 0")
        return self

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def grid(self) -> list[Any]:
        """Its choices, or `points` values from low to high, evenly spaced (geometrically where `log`)."""
        if self.choices:
            return list(self.choices)
        spaced = (np.geomspace if self.log else np.linspace)(self.low, self.high, self.points)
        return list(dict.fromkeys(round(v) if self.whole else float(v) for v in spaced))

    def distribution(self) -> Any:
        """As Optuna has it."""
        from optuna import distributions

        if self.choices:
            return distributions.CategoricalDistribution(self.choices)
        kind = distributions.IntDistribution if self.whole else distributions.FloatDistribution
        return kind(self.low, self.high, log=self.log)


Space = dict[str, Dimension]
"""Dimensions by the path of the spec that they set."""


def space_of(method: str, shared: Mapping[str, Dimension], own: Mapping[str, Dimension]) -> Space:
    """What is searched for a method: the study's shared space, then its own, declared beside its config unless the study
    gives one (`own`). Raises `UserError` where that is nothing."""
    declared = registry.load("method", method).Config.space
    particular = own or {f"method.{name}": Dimension.model_validate(dim) for name, dim in declared.items()}
    space = {**shared, **particular}
    if not space:
        raise UserError(
            f"{method} declares nothing to search; give all methods something under [tune.space], "
            'as in "train.learning_rate" = { low = 1e-4, high = 1e-2, log = true }'
        )
    return space
