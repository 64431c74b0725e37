"""The runs of a claim about success: those that are compared, and the training seeds that are left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from harness.errors import UserError
from harness.records.record import Record, find_records
from harness.records.study_folder import PlanEntry
from reports.audit.inputs.success_claim import SuccessClaim
from reports.race.arms import RaceArm, arms_of, find_arm, trajectory_fields
from reports.race.conditions import select
from reports.race.protocols import protocols_of
from reports.race.study_folder import read_plan, read_study, split_by_plan

DONE, UNEVALUATED = "done", "not evaluated"


class LeftOut(NamedTuple):
    """A training seed of one or both arms that is not compared."""

    seed: int
    candidate: str
    """The status of the arm's run: that of its record, `missing` for a planned run without one, `unplanned`,
    `not evaluated`, or `none`."""
    baseline: str

    def __str__(self) -> str:
        return f"seed {self.seed} (candidate {self.candidate}, baseline {self.baseline})"


@dataclass(frozen=True)
class SuccessRuns:
    """The arms in some folders, and what their plan has without a counted run."""

    arms: Sequence[RaceArm]
    missing: Sequence[PlanEntry] = ()
    unplanned: Sequence[Record] = ()

    def of_claim(self, claim: SuccessClaim) -> tuple[RaceArm, RaceArm]:
        """Return the candidate's and the baseline's arm; raises `UserError` for an unknown one."""
        first, second = (
            find_arm(self.arms, name, "arm of the claim") for name in (claim.candidate, claim.baseline)
        )
        if first is second:
            raise UserError(
                f"claim {claim.name}: '{claim.candidate}' and '{claim.baseline}' are the same arm"
            )
        return first, second

    def seeds(self, sides: Sequence[RaceArm]) -> tuple[tuple[int, ...], tuple[LeftOut, ...]]:
        """Return the training seeds that both arms finished, and all others."""
        first, second = (self._statuses(arm) for arm in sides)
        every = sorted(first.keys() | second.keys())
        found = {seed: (first.get(seed, "none"), second.get(seed, "none")) for seed in every}
        shared = tuple(seed for seed, both in found.items() if both == (DONE, DONE))
        return shared, tuple(LeftOut(seed, *both) for seed, both in found.items() if seed not in shared)

    def _statuses(self, arm: RaceArm) -> dict[int, str]:
        own = [one for one in self.unplanned if trajectory_fields(one.spec) == arm.fields]
        found = {int(one.spec.get("seed", 0)): "unplanned" for one in own}
        planned = [one for one in self.missing if arm.holds(one.values)]
        found |= {int(one.values.get("seed", 0)): "missing" for one in planned}
        return found | {seed: _status(record) for seed, record in arm.runs.items()}


def read_success_runs(folders: Sequence[Path], protocol: str | None = None) -> SuccessRuns:
    """Return the runs in these folders, with the labels of their study.

    `protocol` chooses the conditions of evaluations, for example `sampler_steps=10`. Raises `UserError` for
    folders without runs, and if no run was evaluated under these conditions.
    """
    records, unplanned = split_by_plan(find_records(*folders), folders)
    if not records:
        raise UserError(f"no runs in {', '.join(map(str, folders))}: a run is a folder with a spec.toml")
    records = records if protocol is None else select(records, protocol)
    ids = {record.id for record in records}
    missing = [run for run in read_plan(folders).runs if run.id not in ids]
    return SuccessRuns(arms_of(records, read_study(folders).labels), missing, unplanned)


def unlike(records: Sequence[Record], claim: SuccessClaim) -> str:
    """Return why the last evaluations of runs cannot be compared; empty if they can."""
    if len({protocol for record in records for protocol in _protocols(record, claim)}) > 1:
        return "the runs were evaluated under different protocols of success"
    steps = sorted({record.of("eval")[-1]["step"] for record in records})
    if len(steps) > 1:
        return (
            f"the last evaluations are at different steps ({', '.join(map(str, steps))}), so networks of "
            "unequal training would be compared; extend the shorter runs"
        )
    measured = (results(record, name) for record in records for name in claim.measures)
    starts = sorted({len(found) for found in measured})
    if len(starts) > 1:
        return f"the last evaluations have different numbers of starts ({', '.join(map(str, starts))})"
    return ""


def results(record: Record, metric: str) -> list[bool]:
    """Return the result at each start in the last evaluation of a run, never in its best one.

    Raises `UserError` if that evaluation does not have the metric.
    """
    last = record.of("eval")[-1]
    row = last["metrics"].get(metric, {})
    if not row.get("successes"):
        raise UserError(
            f"{record.path} has no {metric} at its last evaluation (step {last['step']}); measure it: "
            f"flowrace eval {record.path} --metrics {metric.partition('/')[0]} --steps last"
        )
    return [one == "1" for one in row["successes"]]


def _status(record: Record) -> str:
    return UNEVALUATED if record.status == DONE and not record.of("eval") else record.status


def _protocols(record: Record, claim: SuccessClaim) -> set[str]:
    """Return the protocols of a run's values, as text, without the name of the success or stage."""
    return {
        json.dumps({name: value for name, value in fields.items() if name != "metrics"}, sort_keys=True)
        for metric in claim.measures
        for fields in protocols_of(record, metric).values()
    }
