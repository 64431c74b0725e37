"""The early ends of planned runs: what they save, and what they forbid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.records.early_end import FORBIDS, EndRule
from harness.records.record import Record
from sweeps.plan.plan import PlannedRun, arm_of
from sweeps.plan.run_cost import run_cost
from sweeps.plan.target import evaluation_steps


@dataclass(frozen=True)
class EarlyEnds:
    """The consequences of early ends for a race or a sweep, before it starts."""

    rules: dict[str, str]
    """The rule of each arm, in words."""
    earliest: int
    """The first step at which a run can end."""
    steps: int
    saves_at_most: int
    """FLOPs, if every run ended at the first such step."""
    of: int
    forbids: tuple[str, ...] = FORBIDS

    def row(self) -> dict[str, Any]:
        """Return the entry of the plan's JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the lines of the plan."""
        arms: dict[str, list[str]] = {}
        for arm, rule in self.rules.items():
            arms.setdefault(rule, []).append(arm)
        return [
            *(f"runs of {', '.join(names)} end early after {rule}" for rule, names in arms.items()),
            f"a run ends at step {self.earliest} of {self.steps} at the earliest, which saves at most "
            f"{self.saves_at_most:.2e} of {self.of:.2e} FLOPs; one that has not crossed its target goes to "
            "its last step",
            f"runs that end early cannot answer: {', '.join(self.forbids)}; flowrace extend continues them",
        ]


def plan_early_ends(runs: Sequence[PlannedRun]) -> EarlyEnds | None:
    """Return what the early ends of planned runs can save; None if the runs go to their last step."""
    ends: dict[str, EndRule] = {arm_of(run): run.end for run in runs if run.end is not None}
    if not ends:
        return None
    saved = total = 0
    firsts = []
    for run in runs:
        cost = run_cost(run.spec)
        total += cost.total
        due = evaluation_steps(run.spec)
        if run.end is None or run.end.patience >= len(due):
            continue
        firsts.append(due[run.end.patience - 1])
        saved += cost.total - cost.until(firsts[-1])
    steps = max(run.spec.train.steps for run in runs)
    return EarlyEnds(
        {arm: str(rule) for arm, rule in ends.items()}, min(firsts, default=steps), steps, saved, total
    )


def spared_steps(runs: Iterable[PlannedRun], directory: Path) -> float:
    """Return the share of the steps of these runs that early ends left out."""
    planned = spared = 0
    for run in runs:
        planned += run.spec.train.steps
        end = Record(directory / run.id).early_end
        spared += 0 if end is None else end.steps - end.step
    return spared / planned if planned else 0.0
