"""What a file of published claims may say: numbers, and what points at them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Status = Literal["table", "text", "abstract", "figure_estimate", "secondary", "press", "user_report"]
"""Printed in a table, in the text or the abstract; read off a figure; quoted by a third party; press; a
user's own training."""
UNSTATED = "unstated"


class LiteratureEntry(BaseModel):
    """An entry of a file, taken literally: nothing is coerced and unknown fields are rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    id: str = Field(min_length=1)
    source: str = Field(min_length=1)
    """Address and place: the table, the figure, the section."""


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
    """Decimal places printed, -3 for thousands; read off the file (5.70 has two) unless it says so."""
    sampler: str = UNSTATED
    guidance: str = UNSTATED
    samples: int | None = Field(None, ge=1)
    labels: Literal["random", "balanced"] | None = None
    seeds: int = Field(1, ge=1)
    """The number of trainings averaged; one unless the source states another."""
    note: str = ""


class PublishedNumber(PrintedNumber):
    """A printed number with its paper, and under the names that all papers share."""

    paper: str
    title: str
    arxiv: str | None = None
    arm: str
    """The method as flowrace calls it; what is printed, where that is none of its methods at published
    settings."""
    rival: str | None = None
    """The baseline that the source compares it with."""
    network: str
    measure: str


class Ratio(LiteratureEntry):
    """A factor that somebody states, and the two numbers that it divides (their steps, or their values)."""

    status: Status
    method: str
    baseline: str
    dataset: str
    value: float = Field(gt=0)
    places: int = 0
    quantity: Literal["steps", "value"] = "steps"
    of: tuple[str, str]


class KnownSpread(LiteratureEntry):
    """Numbers that would be equal if training and sampling had no luck: their spread is known
    noise."""

    what: str
    metrics: tuple[str, ...] = Field(min_length=1)
    of: tuple[str, ...] = Field(min_length=2)


class Comparison(LiteratureEntry):
    """Two numbers that somebody sets side by side."""

    of: tuple[str, str]


class Head(BaseModel):
    """The top of a file; tables and pointers are validated one by one, so that an error can name its
    entry."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    paper: str = Field(min_length=1)
    """A short key: sf, repa."""
    title: str = Field(min_length=1)
    """As it reads in a sentence."""
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
    """Everything that is known."""

    numbers: tuple[PublishedNumber, ...]
    ratios: tuple[Ratio, ...] = ()
    spreads: tuple[KnownSpread, ...] = ()
    comparisons: tuple[Comparison, ...] = ()

    @cached_property
    def by_id(self) -> dict[str, PublishedNumber]:
        return {number.id: number for number in self.numbers}

    def of(self, pointer: Ratio | KnownSpread | Comparison) -> tuple[PublishedNumber, ...]:
        """Return the numbers that it points at."""
        return tuple(self.by_id[name] for name in pointer.of)
