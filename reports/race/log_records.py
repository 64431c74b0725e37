"""Runs of logs in the form of run directories, so that a race of curves is computed like one of records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from harness.records.early_end import EarlyEnd
from harness.records.evaluations import Conditions, Evaluation
from harness.records.event_log import EventLog, log_of
from harness.records.record import Record
from reports.stats.curves import Costs

LEFT_OUT = (
    "Read from logs. Cost per step, samples, views, software and hardware are left out, because logs do not "
    "record them."
)


@dataclass(frozen=True)
class LogRecord(Record):
    """One run of a log: its values, its costs on the axes that were logged, and nothing else."""

    method: str = ""
    seed: int = 0
    # step -> metric -> value, by ascending step.
    values: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    costs: Costs | None = None
    recorded_protocols: Mapping[str, str] = field(default_factory=dict)
    """The text of the protocol of each metric that has one."""
    end: str = "done"
    early: EarlyEnd | None = None

    @property
    def id(self) -> str:
        return f"{self.method}-seed{self.seed}"

    @cached_property
    def early_end(self) -> EarlyEnd | None:
        return self.early

    @cached_property
    def spec(self) -> dict[str, Any]:
        return {"method": {"name": self.method}, "seed": self.seed}

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """One evaluation a step."""
        return [
            {
                "kind": "eval",
                "step": step,
                "metrics": {name: {"mean": value} for name, value in values.items()},
                "protocols": {name: self.recorded_protocols.get(name, "") for name in values},
            }
            for step, values in self.values.items()
        ]

    def _read_log(self) -> EventLog:
        return log_of(self.events)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return self.events if kind == "eval" else []

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        return []

    @cached_property
    def views(self) -> tuple[Conditions, ...]:
        return (self.shown_conditions,)

    @cached_property
    def shown_conditions(self) -> Conditions:
        return Conditions.of_spec({})

    @cached_property
    def protocols(self) -> dict[str, Any]:
        return {}

    @cached_property
    def environment(self) -> list[dict[str, Any]]:
        return []

    @cached_property
    def failure(self) -> dict[str, Any] | None:
        return {"reason": "logged as failed"} if self.end == "failed" else None

    @property
    def status(self) -> str:
        return self.end
