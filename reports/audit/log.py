"""One run as an audit sees it, wherever it was logged, and the two arms of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from harness.errors import UserError
from reports.curves import Costs, Curve

FREE = ("every", "batch_size", "grid", "replicates", "weights")
"""Fields of `eval` that do not change what a value means."""
Progress = Callable[[Sequence[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Log:
    """One finished run of an arm: its curve, what it cost, and what tells whether it may be compared."""

    method: str
    seed: int
    source: str
    """Where it was read, for messages."""
    curve: Curve
    costs: Costs
    """On the axes that were logged."""
    protocols: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of its evaluations: name or hash -> fields; empty where none is told, `""` for points that tell none."""
    machines: tuple[str, ...] = ()
    """What it ran on; empty where it is not told."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of training, the method's own left out: equal on an equal footing."""
    started: float | None = None
    ended: float | None = None
    """Milliseconds since 1970."""
    aligned: bool = False
    """Whether it was trained towards the very network of the metric."""


@dataclass(frozen=True)
class Logs:
    """Both arms of a comparison, by seed."""

    baseline: Mapping[int, Log]
    candidate: Mapping[int, Log]
    notes: tuple[str, ...] = ()

    @property
    def all(self) -> list[Log]:
        return [*self.baseline.values(), *self.candidate.values()]


class Arms(NamedTuple):
    """The finished runs of some methods, by method and seed, and what the reader must know of those that do not count."""

    runs: dict[str, dict[int, Log]]
    notes: tuple[str, ...] = ()


def by_seed(logs: Iterable[Log]) -> dict[int, Log]:
    """Raises `UserError` for a seed that is told twice."""
    found: dict[int, Log] = {}
    for log in logs:
        if log.seed in found:
            raise UserError(
                f"two runs of {log.method} with seed {log.seed}: {found[log.seed].source} and {log.source}; only one can "
                "count"
            )
        found[log.seed] = log
    return dict(sorted(found.items()))
