"""One run of an audit, wherever it was logged, and the two arms of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from harness.errors import UserError
from reports.stats.curves import Costs, Curve

FREE = ("every", "batch_size", "grid", "replicates", "weights")
"""Fields of `eval` that do not change what a value means."""
Progress = Callable[[Sequence[Any]], Iterable[Any]]


@dataclass(frozen=True)
class AuditRun:
    """One run of an arm that ended, finished or failed: its curve, what it cost, and what decides whether
    it may be compared."""

    method: str
    seed: int
    source: str
    """Where it was read, for messages."""
    curve: Curve
    costs: Costs
    """On the axes that were logged."""
    protocols: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of its evaluations: name or hash -> fields; empty if none is recorded, `""` for points without one."""
    machines: tuple[str, ...] = ()
    """What it ran on; empty if not recorded."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of training, the method's own left out: equal on an equal footing."""
    started: float | None = None
    ended: float | None = None
    """Milliseconds since 1970."""
    aligned: bool = False
    """Whether it was trained towards the very network of the metric."""
    failed: bool = False
    """It is known up to its last evaluation, and had not arrived unless it had by then."""


@dataclass(frozen=True)
class AuditRuns:
    """Both arms of a comparison, by seed."""

    baseline: Mapping[int, AuditRun]
    candidate: Mapping[int, AuditRun]
    notes: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    """The runs that failed before their first evaluation, each in a sentence."""

    @property
    def all(self) -> list[AuditRun]:
        return [*self.baseline.values(), *self.candidate.values()]

    @property
    def finished(self) -> AuditRuns:
        """Without the runs that failed."""
        baseline, candidate = (
            {seed: run for seed, run in arm.items() if not run.failed}
            for arm in (self.baseline, self.candidate)
        )
        return AuditRuns(baseline, candidate, self.notes, self.unseen)


class AuditArms(NamedTuple):
    """The runs of some methods that ended, by method and seed, and what the reader must know of the
    others."""

    runs: dict[str, dict[int, AuditRun]]
    notes: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()


class ReadRun(NamedTuple):
    """One run as read from a source: its log, or a note why it has none."""

    method: str
    seed: int
    failed: bool
    log: AuditRun | None
    note: str = ""


def collect_arms(read: Sequence[ReadRun], names: Sequence[str], notes: Sequence[str] = ()) -> AuditArms:
    """Return the runs of these methods by seed; a run that failed and was run again to its end is left to
    that.

    Raises `UserError` for a seed that occurs twice.
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
    said = [one.note for one in kept if one.note]
    runs = {name: by_seed(one.log for one in kept if one.log and one.method == name) for name in names}
    return AuditArms(runs, (*notes, *said, *again), tuple(unseen))


def by_seed(logs: Iterable[AuditRun]) -> dict[int, AuditRun]:
    """Raises `UserError` for a seed that occurs twice."""
    found: dict[int, AuditRun] = {}
    for log in logs:
        if log.seed in found:
            raise UserError(
                f"two runs of {log.method} with seed {log.seed}: {found[log.seed].source} and {log.source}; only one can "
                "count"
            )
        found[log.seed] = log
    return dict(sorted(found.items()))
