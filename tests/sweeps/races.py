"""Races whose runs have known curves, for tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from reports.audit.audit import Audit
from reports.audit.judge_files import judge_claims
from sweeps.plan.plan import PlannedRun, make_plan
from sweeps.plan.study_folder import study_lock
from sweeps.race.coordinator import Course, run_race
from sweeps.race.race_file import Race, read_race
from tests.reports.synthetic import power_law, write_run

SPEEDS = {"flow": 1.0, "repa": 1.42, "sra": 1.0}
RACE = """
[study]
name = "tiny"
base = "digits"

[study.axes]
seed = [0]
"method.name" = ["flow", "repa", "sra"]
"""


def claim_text(name: str, *, target: float = 40.0, factor: float = 1.3, more: str = "") -> str:
    """Return a claim that an objective is faster than flow, with `more` fields."""
    return f"""
[[claim]]
name = "{name}"
candidate = "{name}"
baseline = "flow"
metric = "fd:local"
target = {target}
factor = {factor}
{more}"""


def sequential(pairs: int = 6) -> str:
    return f"[claim.sequential]\nmax_pairs = {pairs}\n"


def write_file(folder: Path, *arms: str, pairs: int = 6) -> Path:
    path = folder / "claim.toml"
    path.write_text(RACE + "".join(claim_text(arm, more=sequential(pairs)) for arm in arms))
    return path


class Trainer:
    """Writes the records of runs, and counts them by method."""

    def __init__(
        self,
        directory: Path,
        noise: float = 0.06,
        die_after: int | None = None,
        started: float | None = None,
    ) -> None:
        self.directory, self.noise, self.die_after = directory, noise, die_after
        self.environment = {} if started is None else {"started": started}
        self.trained: list[tuple[str, int]] = []

    def __call__(self, runs: Sequence[PlannedRun]) -> tuple[Mapping[str, str], bool]:
        for run in runs:
            if (self.directory / run.id).exists():
                continue
            if self.die_after is not None and len(self.trained) >= self.die_after:
                raise KeyboardInterrupt
            method, seed = run.spec.method.name, run.spec.seed
            self.trained.append((method, seed))
            rng = np.random.default_rng([seed, *method.encode()])
            speed = SPEEDS[method] * math.exp(self.noise * rng.normal())
            scale = 1000.0 * speed**-0.5
            about = self.environment
            write_run(self.directory / run.id, method, seed, metric=power_law(scale, 0.5), environment=about)
        return {}, False

    def count(self, method: str) -> int:
        return sum(name == method for name, _ in self.trained)


def raced(file: Path, trainer: Trainer) -> tuple[Race, Course, list[str]]:
    race, lines = read_race(file), []
    with study_lock(trainer.directory):
        course = run_race(
            race, make_plan(race.study, trainer.directory), trainer.directory, trainer, lines.append
        )
    return race, course, lines


def judged(file: Path, directory: Path) -> list[Audit]:
    return judge_claims([file], [str(directory)])
