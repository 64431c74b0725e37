"""Files of claims and curves with known answers."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from click.testing import CliRunner

from reports.audit.inputs.claim import Claim
from reports.cli.audit import audit as command
from tests.reports.synthetic import METRIC, write_run

CLAIM = {
    "name": "faster",
    "candidate": "new",
    "baseline": "old",
    "metric": "fid",
    "target": 12.0,
    "axis": "steps",
    "factor": 2.0,
    "tolerance": 0.10,
}
GRID = range(25_000, 400_001, 25_000)
CHANGES: dict[str, Any] = {"candidate": "repa", "baseline": "flow", "metric": METRIC}
"""The fields of `CLAIM` that a claim on the runs of `run_records` has."""


def claim(**changes: Any) -> Claim:
    return Claim(**{key: value for key, value in (CLAIM | changes).items() if value is not None})


def claim_file(
    folder: Path, file_name: str = "claim.toml", extra: Mapping[str, Any] | None = None, **changes: Any
) -> Path:
    file = folder / file_name
    table = {key: value for key, value in (CLAIM | changes).items() if value is not None}
    file.write_text(tomli_w.dumps({"claim": table, **(extra or {})}))
    return file


def falling(speed: float) -> Callable[[float], float]:
    """Return a power law, a straight line in logs, that reaches 12 at step 100k / speed."""
    return lambda step: 12 * (speed * step / 100_000) ** -0.5


def run_records(folder: Path, speeds: dict[str, float], seeds: int = 3, **run) -> Path:
    """Write runs of these methods, each faster than `flow` by its factor."""
    for seed in range(seeds):
        for method, speed in speeds.items():
            own = speed * math.exp(0.01 * ((seed * 7 + ord(method[0])) % 5 - 2))
            write_run(
                folder / f"{method}-{seed}",
                method,
                seed,
                metric=lambda s, own=own: falling(own)(100 * s),
                **run,
            )
    return folder


def rows(
    speeds: Mapping[str, float],
    *,
    seeds: Iterable[int] = range(5),
    grid: Iterable[int] = GRID,
    noise: float = 0.02,
    costs: Mapping[str, Mapping[str, float]] | None = None,
    **columns: Any,
) -> list[dict[str, Any]]:
    """Return the lines of a tidy CSV; `costs` holds the cost of a step by column and method.

    The times of the seeds have log-normal noise, half of which is shared by pairs.
    """
    found = []
    for seed in seeds:
        rng = np.random.default_rng([seed, 1])
        shared = rng.normal()
        for method, speed in speeds.items():
            own = falling(speed * math.exp(noise * (shared + rng.normal())))
            for step in grid:
                row = {"method": method, "seed": seed, "step": step, "metric": "fid", "value": own(step)}
                row |= {axis: step * by_method[method] for axis, by_method in (costs or {}).items()}
                found.append(row | columns)
    return found


def write_csv(file: Path, lines: list[dict[str, Any]]) -> Path:
    with open(file, "w", newline="") as out:
        writer = csv.DictWriter(out, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    return file


def run_audit(*words: str) -> dict[str, Any]:
    """Return the JSON object that `flowrace audit` prints."""
    found = CliRunner().invoke(command, [*words, "--json"], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def reason_names(found: Mapping[str, Any]) -> list[str]:
    """Return the names of an audit's reasons."""
    return [reason.partition(":")[0] for reason in found["reasons"]]
