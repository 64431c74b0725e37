"""What a sweep leaves beside its runs: `study.toml` (what was asked) and `plan.json` (which runs were meant to be)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.spec import read_toml


@dataclass(frozen=True)
class Study:
    """The parts of `study.toml` that a report uses; None where they are not given."""

    name: str | None = None
    baseline: str | None = None
    metric: str | None = None
    target: float | None = None


@dataclass(frozen=True)
class Planned:
    """A run of `plan.json`: its id and what sets it apart, as `{"method.name": "repa", "seed": 0}`."""

    id: str
    cell: Mapping[str, Any]


def read_study(directories: Sequence[Path]) -> Study:
    """The first `study.toml` in these folders; empty when there is none. Raises `UserError` for one that is broken."""
    for file in (directory / "study.toml" for directory in directories):
        if file.is_file():
            return _study(file, read_toml(file))
    return Study()


def read_plan(directories: Sequence[Path]) -> list[Planned]:
    """The planned runs of these folders, in order; empty when nothing was planned."""
    return [run for directory in directories for run in _plan(directory / "plan.json")]


def _study(file: Path, table: Mapping[str, Any]) -> Study:
    target = table.get("target", {})
    if not isinstance(target, Mapping):
        raise UserError(f'{file}: target must be a table, as in [target] metric = "fd:local", value = 12.0')
    value = target.get("value")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
        raise UserError(f"{file}: target.value = {value!r}: expected a number above 0")
    words = {"name": table.get("name"), "baseline": table.get("baseline"), "metric": target.get("metric")}
    for key, word in words.items():
        if word is not None and not isinstance(word, str):
            raise UserError(f"{file}: {key} = {word!r}: expected a text")
    return Study(**words, target=None if value is None else float(value))


def _plan(file: Path) -> list[Planned]:
    if not file.is_file():
        return []
    try:
        return [Planned(str(run["id"]), dict(run["cell"])) for run in json.loads(file.read_text())["runs"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{file} is not a plan: expected {{"runs": [{{"id": ..., "cell": {{...}}}}]}}'
        ) from error
