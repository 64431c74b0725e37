"""The computed report: everything that pages, figures, CSV, JSON and the terminal show, computed once.

A `RaceReport` is built from a `Race`. Its parts are computed on first access and cached, so a command pays
only for what it shows. Pages and figures only render it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Unpack

from reports.analysis.ablation import Ablation, compute_ablation
from reports.analysis.control import Control, compute_control
from reports.analysis.performance_profile import Profile, compute_profile
from reports.analysis.rows import Row, arm_rows, final_value_rows, run_rows
from reports.analysis.scaling import Scaling, encoder_scaling, model_scaling
from reports.audit.audit import Audit
from reports.audit.inputs.log_runs import read_log_records
from reports.audit.judge_files import judge_claims
from reports.audit.success import SuccessAudit, judge_success
from reports.logs.log_map import LogMap
from reports.race.across import Across, across_of, sentence_across
from reports.race.by_attribute import AttributeRace, by_attribute
from reports.race.by_target import SpeedupByTarget, speedup_by_target
from reports.race.final_values import FinalValue, final_values_of, real_sample_values
from reports.race.gradients import Gradients, gradients_of
from reports.race.race import Race, RaceArguments, race_at, read_race
from reports.race.verdict import caveats_of, goal, how_found, sentence
from reports.race.views import View, views_of
from reports.race.workloads import PooledSpeedup, Workload, objectives_of, pool_cells, workloads_of


@dataclass(frozen=True)
class RaceReport:
    """A race and everything derived from it. Its parts raise `UserError` if a study's encoder or control
    table is invalid."""

    race: Race
    claims: tuple[Audit, ...] = ()
    """The audited claims of speed-ups, in the order given."""
    success_claims: tuple[SuccessAudit, ...] = ()
    """The audited claims about success, in the order given."""

    @cached_property
    def goal(self) -> str | None:
        """The target in words; None if no run is finished yet."""
        known = any(value is not None for value in (self.race.targets or {}).values())
        return goal(self.race) if known else None

    @cached_property
    def how_found(self) -> str:
        """The rule by which the target was found, in words; empty for a number."""
        return how_found(self.race)

    @cached_property
    def across(self) -> Across | None:
        """The summary of several cells in the headline; None for a race of one cell."""
        if len(self.race.cells) < 2:
            return None
        return across_of(self.race, self.workloads, self.pooled)

    @cached_property
    def verdict(self) -> dict[str, str]:
        """One to three sentences per axis, steps first."""
        if self.across is None:
            return {axis: sentence(self.race, axis) for axis in self.race.axes}
        about = self.race, self.workloads, self.pooled
        return {axis: sentence_across(*about, axis, self.across) for axis in self.race.axes}

    @cached_property
    def at_other_targets(self) -> tuple[RaceReport, ...]:
        """The same race at every further target of the study or the command."""
        return tuple(RaceReport(race_at(self.race, rule)) for rule in self.race.rules[1:])

    @property
    def headline(self) -> str:
        return next(iter(self.verdict.values()))

    @cached_property
    def caveats(self) -> tuple[str, ...]:
        """Return the caveats to know before quoting a number, most important first."""
        altered = [f"{one[0].upper()}{one[1:]}. Do not quote its numbers." for one in self.race.misfits]
        return (*altered, *self._about_looks(), *caveats_of(self.race))

    def _about_looks(self) -> list[str]:
        """Report that intervals outside the claims do not allow for the looks of a sequential claim."""
        if not any(one.claim.sequential for one in self.claims):
            return []
        return [
            "The race was judged before all its runs were done. The intervals of its claims allow for that; "
            "those of the other sections are for a number of pairs that was fixed before, and are too narrow."
        ]

    @cached_property
    def objectives(self) -> tuple[str, ...]:
        """The labels of all objectives, the baseline's first."""
        return tuple(objectives_of(self.race))

    @cached_property
    def workloads(self) -> tuple[Workload, ...]:
        """The cells of the study: sets of arms that differ in nothing but their objective."""
        return tuple(workloads_of(self.race))

    @cached_property
    def pooled(self) -> dict[tuple[str, str], PooledSpeedup]:
        """The effect over all workloads, by axis and objective, if two or more have an interval."""
        pooled = {
            (axis, objective): pool_cells(self.workloads, axis, objective)
            for axis in self.race.axes
            for objective in self.objectives
        }
        return {key: effect for key, effect in pooled.items() if effect is not None}

    @cached_property
    def views(self) -> tuple[View, ...]:
        """The race under each set of conditions in which it was evaluated, the shown ones first."""
        return views_of(self.race)

    @cached_property
    def under_views(self) -> tuple[RaceReport, ...]:
        """The reports of the views."""
        return tuple(self if view.race is self.race else RaceReport(view.race) for view in self.views)

    @cached_property
    def by_target(self) -> SpeedupByTarget:
        """The speed-up at every target."""
        return speedup_by_target(self.race)

    @cached_property
    def by_attribute(self) -> tuple[AttributeRace, ...]:
        """The race by each attribute of the captions; empty for runs without captions."""
        return by_attribute(self.race)

    @cached_property
    def final_values(self) -> tuple[FinalValue, ...]:
        """Every metric at the last step of every arm."""
        return tuple(final_values_of(self.race))

    @cached_property
    def profiles(self) -> dict[str, Profile]:
        """The performance profile of each axis that has one."""
        profiles = {axis: compute_profile(self.objectives, self.workloads, axis) for axis in self.race.axes}
        return {axis: profile for axis, profile in profiles.items() if profile is not None}

    @cached_property
    def ablation(self) -> Ablation | None:
        return compute_ablation(self.race, self.objectives, self.workloads)

    @cached_property
    def encoder_scaling(self) -> Scaling | None:
        return encoder_scaling(self.race)

    @cached_property
    def model_scaling(self) -> Scaling | None:
        return model_scaling(self.workloads)

    @cached_property
    def control(self) -> Control | None:
        return compute_control(self.race)

    @cached_property
    def gradients(self) -> Gradients | None:
        """The separate gradients of flow loss and alignment; None if no run logged them."""
        return gradients_of(self.race)

    @cached_property
    def arm_rows(self) -> list[Row]:
        return arm_rows(self.race)

    @cached_property
    def run_rows(self) -> list[Row]:
        return run_rows(self.race)

    @cached_property
    def final_value_rows(self) -> list[Row]:
        return final_value_rows(self.final_values, real_sample_values(self.race))


def read_report(
    directories: Sequence[Path | str],
    *,
    claims: Sequence[Path] = (),
    rules: LogMap | None = None,
    **asked: Unpack[RaceArguments],
) -> RaceReport:
    """Read the runs of these folders, logs or stores and audit these claim files on them.

    See `read_race` and `judge_claims`; `rules` are the ways to read logs.
    """
    sources = [str(directory) for directory in directories]
    logged = read_log_records(sources, asked.get("metric"), rules)
    records, asked["metric"], notes = logged or (None, asked.get("metric"), [])
    race = read_race([Path(source) for source in sources], logged=records, **asked)
    # The name of a race on a server without a study is the end of its address.
    name = race.name.rpartition("@")[2] if "://" in sources[0] else race.name
    race = replace(race, name=name, notes=(*race.notes, *notes))
    labels, protocol = asked.get("labels"), asked.get("protocol")
    found = judge_claims(claims, sources, labels=labels, protocol=protocol, rules=rules)
    succeeded = judge_success(claims, [Path(source) for source in sources], protocol=protocol)
    return RaceReport(race, tuple(found), tuple(succeeded))
