"""The map of logs whose names or units are not clear: patterns, aliases, units of steps.

pattern = '(?P<method>.+)-seed(?P<seed>\\d+)'    # names of runs or files
line = 'step (?P<step>\\d+).* fid (?P<fid>\\S+)'  # lines of plain logs: a group a metric

[runs]                                           # runs by name
"dandelion-wind-7" = { method = "flow", seed = 0 }
[methods]                                        # other names of methods
REPA = "repa"
[metrics]                                        # other names of metrics
"eval/fid50k" = "fid"
[steps]                                          # only if the log counts something else
unit = "kimg"                                    # steps, images, kimg, epochs
batch_size = 256                                 # images a step, for images and kimg
per_epoch = 5004                                 # steps an epoch
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.errors import UserError
from harness.files.files import read_toml

Unit = Literal["steps", "images", "kimg", "epochs"]
EXAMPLE = r"--pattern '(?P<method>.+)-seed(?P<seed>\d+)'"


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NamedRun(Section):
    """The method and the seed of a run."""

    method: str = Field(min_length=1)
    seed: int


class StepUnit(Section):
    """The unit of a log's steps, and the numbers that convert it."""

    unit: Unit | None = None
    batch_size: int | None = Field(default=None, ge=1)
    per_epoch: float | None = Field(default=None, gt=0)


class LogMap(Section):
    """Rules for reading logs; empty for logs that are clear."""

    pattern: str | None = None
    line: str | None = None
    runs: Mapping[str, NamedRun] = {}
    methods: Mapping[str, str] = {}
    metrics: Mapping[str, str] = {}
    steps: StepUnit = StepUnit()

    def steps_of(self, count: float, unit: Unit, where: str) -> int:
        """Return training steps from a count of the log; `unit` is the unit that the log states.

        Raises `UserError` for a unit other than steps without the number that converts it.
        """
        unit = self.steps.unit or unit
        if not (math.isfinite(count) and count >= 0):
            raise UserError(f"{where}: {count:g} {unit}: expected a finite number, 0 or more")
        if unit == "steps":
            return round(count)
        if unit == "epochs":
            if self.steps.per_epoch is None:
                raise UserError(
                    f"{where} counts epochs; give the steps of an epoch: [steps] per_epoch = N in --map"
                )
            return round(count * self.steps.per_epoch)
        if self.steps.batch_size is None:
            raise UserError(
                f"{where} counts {unit}; give the images of a step: [steps] batch_size = N in --map"
            )
        return round(count * (1000 if unit == "kimg" else 1) / self.steps.batch_size)

    def metric(self, name: str) -> str:
        return self.metrics.get(name, name)


def read_map(file: Path | None, patterns: Sequence[str] = ()) -> LogMap:
    """Return the map of a file, with the patterns of the command line.

    A pattern with a group `step`, `epoch`, `kimg` or `images` is one of lines, any other is one of names.
    Raises `UserError` for an invalid file or pattern.
    """
    table = read_toml(file) if file else {}
    for pattern in patterns:
        table["line" if _groups(pattern) & {"step", "epoch", "kimg", "images"} else "pattern"] = pattern
    try:
        found = LogMap.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{file}: {place}: {first['msg'].lower()} (known: {', '.join(LogMap.model_fields)})"
        ) from error
    if found.pattern is not None and not {"method", "seed"} <= _groups(found.pattern):
        raise UserError(f"pattern '{found.pattern}' needs the groups method and seed, for example {EXAMPLE}")
    if found.line is not None and not _groups(found.line) & {"step", "epoch", "kimg", "images"}:
        raise UserError(
            f"line pattern '{found.line}' needs a group step, epoch, kimg or images, for example "
            r"'step (?P<step>\d+).* fid (?P<fid>\S+)'"
        )
    return found


def _groups(pattern: str) -> set[str]:
    try:
        return set(re.compile(pattern).groupindex)
    except re.error as error:
        raise UserError(f"pattern '{pattern}' is not a regular expression: {error}") from error
