"""The runs of an audit, independent of the source that they were read from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from harness.errors import UserError
from harness.records.early_end import EarlyEnd
from reports.stats.curves import Costs, Curve

FREE = ("every", "batch_size", "grid", "replicates", "weights")
"""Fields of `eval` that do not change what a value means."""
Places = frozenset[tuple[str, int]]
"""Methods and seeds of runs without a value."""
Progress = Callable[[Sequence[Any]], Iterable[Any]]


@dataclass(frozen=True)
class AuditRun:
    """One finished or failed run: its curve, its costs, and the conditions that make it comparable."""

    method: str
    seed: int
    source: str
    """The path or name of the run, for messages."""
    curve: Curve
    costs: Costs
    """Costs on the axes that were logged."""
    protocols: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Evaluation protocols, name or hash -> fields. Empty if none is recorded; `""`: a point without one."""
    machines: tuple[str, ...] = ()
    """Hardware of the run; empty if not recorded."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Training settings except those of the method; they are equal on an equal footing."""
    started: float | None = None
    ended: float | None = None
    """Milliseconds since 1970."""
    aligned: bool = False
    """True if the run was aligned to the network that computes the metric."""
    failed: bool = False
    """True if the run failed, so that it is censored after its last evaluation."""
    early: EarlyEnd | None = None
    """The early end of the run, before its last step; None for any other run."""
    cut: bool = False
    """True if the curve is that up to the early end which the claim registers."""
    misfits: tuple[str, ...] = ()
    """The parts of the record that do not fit together, a sentence each."""


@dataclass(frozen=True)
class AuditRuns:
    """Both arms of a comparison, by seed."""

    baseline: Mapping[int, AuditRun]
    candidate: Mapping[int, AuditRun]
    notes: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    """Sentences about the runs that failed before their first evaluation, one each."""
    lost: Places = frozenset()
    """The runs that failed before their first evaluation."""
    missing: Places = frozenset()
    """The runs that were planned or begun and have no end, and those that were not evaluated."""

    @property
    def all(self) -> list[AuditRun]:
        return [*self.baseline.values(), *self.candidate.values()]

    @property
    def finished(self) -> AuditRuns:
        """The same arms without failed runs."""
        baseline, candidate = (
            {seed: run for seed, run in arm.items() if not run.failed}
            for arm in (self.baseline, self.candidate)
        )
        return replace(self, baseline=baseline, candidate=candidate)


class AuditArms(NamedTuple):
    """Finished and failed runs by method and seed, with notes about the others."""

    runs: dict[str, dict[int, AuditRun]]
    notes: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    lost: Places = frozenset()
    missing: Places = frozenset()


class RunTimes(NamedTuple):
    """The time of a run in milliseconds since 1970; None if no start is recorded."""

    started: float | None
    ended: float | None
    """The earliest time at which it can have ended."""


class ReadRun(NamedTuple):
    """One run as read from a source: its log, or a note on why it has none."""

    method: str
    seed: int
    failed: bool
    log: AuditRun | None
    note: str = ""


def collect_arms(
    read: Sequence[ReadRun],
    names: Sequence[str],
    notes: Sequence[str] = (),
    planned: Iterable[tuple[str, int]] = (),
) -> AuditArms:
    """Return the runs of these methods by seed. A failed run is dropped if a finished one has its seed.

    `planned` are methods and seeds of planned runs that do not exist yet. Raises `UserError` for a seed
    that occurs twice.
    """
    ended = {(one.method, one.seed) for one in read if one.log is not None and not one.failed}
    kept, unseen, again = [], [], {}
    for one in read:
        if one.failed and (one.method, one.seed) in ended:
            again[f"{one.method} seed {one.seed} failed before; its finished run counts."] = None
        elif one.failed and one.log is None:
            unseen.append(one.note)
        else:
            kept.append(one)
    about = [one.note for one in kept if one.note]
    runs = {name: by_seed(one.log for one in kept if one.log and one.method == name) for name in names}
    valued = {(one.method, one.seed) for one in kept if one.log is not None}
    lost = {(one.method, one.seed) for one in read if one.failed and one.log is None} - valued
    missing = {(one.method, one.seed) for one in kept if one.log is None} | set(planned)
    places = frozenset(lost), frozenset(missing - valued - lost)
    return AuditArms(runs, (*notes, *about, *again), tuple(unseen), *places)


def by_seed(logs: Iterable[AuditRun]) -> dict[int, AuditRun]:
    """Return the runs by seed, ascending; raises `UserError` for a seed that occurs twice."""
    found: dict[int, AuditRun] = {}
    for log in logs:
        if log.seed in found:
            raise UserError(
                f"two runs of {log.method} with seed {log.seed}: {found[log.seed].source} and {log.source}; "
                "only one can count, so remove the other"
            )
        found[log.seed] = log
    return dict(sorted(found.items()))
