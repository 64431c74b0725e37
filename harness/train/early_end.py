"""The watch over the evaluations of a run in training, which ends it early."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# Any: rows and totals of the record.
from typing import Any

from harness.config.spec import RunSpec
from harness.errors import unknown
from harness.records.early_end import EarlyEnd, EndRule, values_of
from harness.records.evaluations import recorded_name


@dataclass
class EndWatch:
    """The values of a run's evaluations so far, and the rule that they may fulfil. Ranks other than 0 have no
    values."""

    rule: EndRule
    values: dict[str, list[tuple[int, float]]]

    @classmethod
    def after(cls, rule: EndRule | None, evaluations: Iterable[Mapping[str, Any]]) -> EndWatch | None:
        """Return the watch over a run with these evaluations so far; None without a rule."""
        return None if rule is None else cls(rule, values_of(evaluations, rule.metrics))

    def add(self, step: int, metrics: Mapping[str, Mapping[str, Any]]) -> None:
        """Add an evaluation."""
        for metric, own in values_of([{"step": step, "metrics": metrics}], self.rule.metrics).items():
            self.values[metric] += own

    @property
    def end(self) -> int | None:
        """The step of the evaluation that ends the run; None if the run continues."""
        return self.rule.end(self.values)

    def early_end(self, steps: int, totals: Mapping[str, Any]) -> EarlyEnd | None:
        """Return the early end of a run of `steps` steps with these totals; None if it went to its last
        step."""
        end = self.end
        if end is None or end >= steps:
            return None
        return EarlyEnd(end, steps, str(self.rule), int(totals["images"]), totals["flops"])


def check_rule(rule: EndRule | None, spec: RunSpec) -> None:
    """Raise `UserError` for a rule on a metric that is not evaluated during training."""
    for metric, _ in rule.targets if rule is not None else ():
        if recorded_name(metric) not in spec.eval.metrics:
            raise unknown("metric of an early end", metric, spec.eval.metrics)
