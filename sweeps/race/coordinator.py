"""The course of a race: train the pairs of the next look, look, and stop when every claim has ended.

Rerun a stopped or killed race to continue it. A look that is recorded is not taken again, so the same runs
give the same looks and the same decision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.records.record import Record, failure_reason
from harness.records.study_folder import StudyFolder
from reports.audit.audit import Audit
from reports.audit.inputs.claim import claim_hash, raised_from
from reports.audit.judge_files import judge_claims
from reports.audit.look_log import cut_log, last_look, other_pairs, read_looks, record_look
from reports.audit.register import NAME, read_register, register_claims
from sweeps.plan.plan import PlannedRun, StudyPlan
from sweeps.plan.run_state import read_state
from sweeps.plan.study_folder import write_plan
from sweeps.race.race_file import Race, pairs_until

LATE = ("post hoc", "registered during the runs")
"""Standings of a claim that a race names, because its reader may have seen runs before."""
Look = Mapping[str, Any]
"""A row of the log of looks."""


@dataclass(frozen=True)
class Course:
    """The end of a race."""

    looks: tuple[Look, ...]
    runs: tuple[PlannedRun, ...]
    """The runs that were needed."""
    failures: Mapping[str, str]
    """Reason of each failed run by id."""
    stopped: bool = False
    """True if a signal stopped the race."""
    lost: bool = False
    """True if a run has no end, so that no look was taken; the next start continues it."""
    registered: Mapping[str, str] = field(default_factory=dict)
    """When each claim was registered, relative to its runs, by name; empty before a look."""


def run_race(
    race: Race,
    plan: StudyPlan,
    directory: Path,
    train: Callable[[Sequence[PlannedRun]], tuple[Mapping[str, str], bool]],
    note: Callable[[str], None],
) -> Course:
    """Run a race in its folder, which the caller has locked.

    `train` runs what is unfinished of these runs and returns the reasons of failed ones, and whether a signal
    stopped it. A run without an end ends the course before the look; the next start continues it. `note`
    receives a line for each look. Raises `UserError` for a log of looks or a register that was altered.
    """
    recorded = {row["look"]: row for row in read_looks(directory)}
    _check_folder(race, plan, directory, recorded.values())
    _register(race, note)
    runs: dict[str, PlannedRun] = {}
    looks: list[Look] = []
    audits: Sequence[Audit] = ()
    for n in race.rule.all_looks:
        arms = race.arms_of(race.hashes if not looks else undecided(looks[-1]))
        runs |= {run.id: run for run in pairs_until(race, plan, n, arms)}
        if n not in recorded:
            planned = StudyPlan(list(runs.values()), plan.excluded)
            write_plan(race.study, planned, directory, last_look(directory))
            # A run whose loss diverged is a bound, and is not tried again.
            failed, stopped = train([run for run in runs.values() if not _diverged(run, directory)])
            lost = _unended(runs.values(), directory)
            if stopped or lost:
                return Course(tuple(looks), tuple(runs.values()), failed, stopped, lost)
            first, audits = not audits, _judged(race, directory, n)
            for line in _late(audits) if first else ():
                note(line)
            recorded[n] = record_look(directory, n, audits)
            write_plan(race.study, planned, directory, last_look(directory))
        looks.append(recorded[n])
        for line in look_lines(race, recorded[n]):
            note(line)
        if not undecided(recorded[n]):
            break
    _count_last_look(race, StudyPlan(list(runs.values()), plan.excluded), directory)
    failures = {
        run.id: failure_reason(Record(directory / run.id))
        for run in runs.values()
        if _diverged(run, directory)
    }
    registered = {one.claim.name: one.standing for one in audits or _judged(race, directory)}
    return Course(tuple(looks), tuple(runs.values()), failures, registered=registered)


def _count_last_look(race: Race, planned: StudyPlan, directory: Path) -> None:
    """Write the plan again if it does not count the last look: a race that was killed between the two."""
    last, known = last_look(directory), StudyFolder(directory).plan
    if known is None or known.last_look != last:
        write_plan(race.study, planned, directory, last)


def _judged(race: Race, directory: Path, most_pairs: int | None = None) -> list[Audit]:
    """Judge the claims of a race on its runs; raises `UserError` if its file was changed meanwhile."""
    audits = judge_claims([race.file], [str(directory)], most_pairs=most_pairs)
    if [claim_hash(audit.claim) for audit in audits] != race.hashes:
        raise UserError(f"{race.file} was changed while its race ran; restore it, and run it again")
    return audits


def _register(race: Race, note: Callable[[str], None]) -> None:
    """Register the claims, and note new ones."""
    register = race.file.with_name(NAME)
    earlier = {one: pairs for claim in race.claims for one, pairs in raised_from(claim).items()}
    known = read_register(register)
    for entry, new in register_claims(register, race.claims):
        if new:
            note(f"registered claim {entry.name} as {entry.hash} in {register}")
        if new and (raised := [earlier[one] for one in known if one in earlier]):
            note(f"max_pairs was raised from {max(raised)} to {race.rule.max_pairs}; the looks so far count")


def _late(audits: Iterable[Audit]) -> list[str]:
    """Return a line for each claim that was not registered before its runs, as an audit names it."""
    return [
        f"claim {audit.claim.name}: {audit.standing}"
        + (": a run had finished before the claim was registered" if audit.standing == "post hoc" else "")
        for audit in audits
        if audit.standing in LATE
    ]


def _check_folder(race: Race, plan: StudyPlan, directory: Path, looks: Iterable[Look]) -> None:
    """Raise `UserError` for a folder with the looks of other claims, or with runs that the race lacks."""
    if lacking := cut_log(directory):
        raise UserError(
            f"{directory}: {lacking}; restore the file, or start the race again with another --out"
        )
    for row in looks:
        if [race.current(seen["hash"]) for seen in row["claims"]] != race.hashes:
            names = ", ".join(f"{seen['name']} ({seen['hash']})" for seen in row["claims"])
            why = next(
                (
                    text
                    for seen in row["claims"]
                    for claim in race.claims
                    if (text := other_pairs(claim, seen["hash"]))
                ),
                "",
            )
            raise UserError(
                f"{directory} holds the looks of {names}, not those of {race.file}{why}; choose another --out"
            )
    planned, folder = {run.id for run in plan.runs}, StudyFolder(directory)
    if folder.plan and (others := folder.plan.ids - planned):
        raise UserError(
            f"{directory} holds a study with {len(others)} runs that the race does not plan; choose another "
            "--out"
        )


def _diverged(run: PlannedRun, directory: Path) -> bool:
    return Record(directory / run.id).status == "failed"


def _unended(runs: Iterable[PlannedRun], directory: Path) -> bool:
    """Return whether a run has neither finished nor stopped for a reason of its training.

    A look counts a run whose loss diverged as a bound. One whose process was lost is continued first.
    """
    return any(not _diverged(run, directory) and read_state(run, directory).status != "done" for run in runs)


def undecided(look: Look) -> list[str]:
    """Return the hashes of the claims that a look has not ended."""
    return [seen["hash"] for seen in look["claims"] if not seen["ended"]]


def look_lines(race: Race, look: Look) -> list[str]:
    """Return a line for each claim at a look."""
    number = race.rule.all_looks.index(look["look"]) + 1
    opening = f"look {number} of {len(race.rule.all_looks)}, {look['look']} pairs"
    return [f"{opening}: {seen['name']} {interval_text(seen)}: {ending(seen)}" for seen in look["claims"]]


def interval_text(seen: Mapping[str, Any]) -> str:
    """Return the speed-up that a look saw, for example `1.31x [0.98, 1.75]`."""
    estimate, low, high = seen["speedup"]
    if estimate is None:
        return "has no speed-up"
    if low is None:
        return f"{estimate:.2f}x without an interval"
    return f"{estimate:.2f}x [{low:.2f}, {'∞' if high is None else f'{high:.2f}'}]"


def ending(seen: Mapping[str, Any]) -> str:
    """Return how a look left a claim."""
    return seen["ended"] or "undecided"
