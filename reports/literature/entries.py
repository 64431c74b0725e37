"""The entries of a file of published numbers: numbers, and ratios, spreads and comparisons of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Status = Literal["table", "text", "abstract", "figure_estimate", "secondary", "press", "user_report"]
"""The origin of a number. `figure_estimate` is read off a figure; `secondary` is quoted by a third party."""
UNSTATED = "unstated"


class LiteratureEntry(BaseModel):
    """An entry of a file. Nothing is coerced, and unknown fields are rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    id: str = Field(min_length=1)
    source: str = Field(min_length=1)
    """The address, and the place in it: a table, a figure or a section."""


class PrintedNumber(LiteratureEntry):
    """One number as its source prints it."""

    status: Status
    method: str
    baseline: str | None = None
    model: str
    dataset: str
    metric: str
    better: Literal["lower", "higher"] = "lower"
    steps: int | str
    """Training steps, or the source's words for them ("1600ep", "unstated")."""
    value: float | str
    places: int = 0
    """Printed decimal places, -3 for thousands. Default: counted in the file (5.70 has two)."""
    sampler: str = UNSTATED
    guidance: str = UNSTATED
    samples: int | None = Field(None, ge=1)
    labels: Literal["random", "balanced"] | None = None
    seeds: int = Field(1, ge=1)
    """The number of trainings averaged; one unless the source states another."""
    note: str = ""


class PublishedNumber(PrintedNumber):
    """A printed number with its paper, and with the names that all papers share."""

    paper: str
    title: str
    arxiv: str | None = None
    arm: str
    """flowrace's name of the method, or the printed name if flowrace lacks it at the published settings."""
    rival: str | None = None
    """The baseline that the source compares it with."""
    network: str
    measure: str


class Ratio(LiteratureEntry):
    """A stated factor, and the two numbers whose steps or values it divides."""

    status: Status
    method: str
    baseline: str
    dataset: str
    value: float = Field(gt=0)
    places: int = 0
    quantity: Literal["steps", "value"] = "steps"
    of: tuple[str, str]


class KnownSpread(LiteratureEntry):
    """Numbers that differ by chance alone, so that their spread is known noise."""

    what: str
    metrics: tuple[str, ...] = Field(min_length=1)
    of: tuple[str, ...] = Field(min_length=2)


class Comparison(LiteratureEntry):
    """Two numbers that a source compares."""

    of: tuple[str, str]


class Head(BaseModel):
    """The top level of a file. Its tables are validated one by one, so that an error can name its entry."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    paper: str = Field(min_length=1)
    """A short key: sf, repa."""
    title: str = Field(min_length=1)
    """The short title used in sentences."""
    arxiv: str | None = None
    methods: dict[str, str] = {}
    models: dict[str, str] = {}
    metrics: dict[str, str] = {}
    table: tuple[dict[str, Any], ...] = ()
    ratio: tuple[dict[str, Any], ...] = ()
    spread: tuple[dict[str, Any], ...] = ()
    comparison: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Literature:
    """All published numbers, and the ratios, spreads and comparisons of them."""

    numbers: tuple[PublishedNumber, ...]
    ratios: tuple[Ratio, ...] = ()
    spreads: tuple[KnownSpread, ...] = ()
    comparisons: tuple[Comparison, ...] = ()

    @cached_property
    def by_id(self) -> dict[str, PublishedNumber]:
        return {number.id: number for number in self.numbers}

    def of(self, pointer: Ratio | KnownSpread | Comparison) -> tuple[PublishedNumber, ...]:
        """Return the numbers that an entry refers to."""
        return tuple(self.by_id[name] for name in pointer.of)
