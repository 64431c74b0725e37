"""Claims about success: one arm's policies succeed more often than another's, on the same starts.

    [[success]]
    name = "self-flow-over-flow-at-50"
    candidate = "flow (data.episodes = 50, start.arm = self_flow)"   # an arm, by label
    baseline = "flow (data.episodes = 50, start.arm = flow)"
    metric = "success@open-and-place"     # or that of a stage, success@open-and-place/placed
    beyond = ""                           # a stage whose difference is subtracted
    difference = 0.0                      # the share by which the candidate succeeds more often
    min_pairs = 3                         # training seeds

A claimed speed-up to a success rate is a `[[claim]]` on its shortfall, `1-success@open-and-place`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from harness.errors import UserError
from harness.files.files import read_toml
from harness.records.evaluations import SUCCESS
from reports.audit.inputs.claim import Claim, Section, read_claims, validated


class SuccessClaim(Section):
    """One claimed difference of success, at the last evaluation of every run."""

    name: str = Field(min_length=1)
    candidate: str = Field(min_length=1)
    baseline: str = Field(min_length=1)
    metric: str
    beyond: str = ""
    """A stage in which the difference is expected to be smaller; it is subtracted. Empty for none."""
    difference: float = Field(0.0, ge=0, lt=1)
    """The candidate's success exceeds the baseline's by more than this."""
    min_pairs: int = Field(3, ge=2)
    """Training seeds that both arms need."""

    @field_validator("metric", "beyond")
    @classmethod
    def _is_success(cls, metric: str) -> str:
        if metric and not metric.startswith(SUCCESS):
            raise ValueError(f"expected {SUCCESS}TASK, for example {SUCCESS}open-and-place")
        return metric

    @model_validator(mode="after")
    def _compares(self) -> SuccessClaim:
        if self.candidate == self.baseline:
            raise ValueError(f"candidate and baseline are both '{self.candidate}'")
        if not self.metric or self.beyond == self.metric:
            raise ValueError("metric and beyond name two different successes")
        if len({name.partition("/")[0] for name in self.measures}) > 1:
            raise ValueError(f"beyond = {self.beyond} is no stage of the task of {self.metric}")
        return self

    @property
    def measures(self) -> tuple[str, ...]:
        """The successes that the claim compares."""
        return (self.metric, self.beyond) if self.beyond else (self.metric,)


def read_success_claims(file: Path) -> list[SuccessClaim]:
    """Return the claims about success of a TOML file; empty without any.

    Raises `UserError`, which names the file, the key, its value and what is allowed.
    """
    rows = read_toml(file).get("success", [])
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise UserError(f"{file}: expected claims about success as tables [[success]]")
    found: list[SuccessClaim] = [validated(SuccessClaim, row, f"{file}: success") for row in rows]
    names = [claim.name for claim in found]
    if len(set(names)) < len(names):
        raise UserError(f"{file}: two claims have the same name; give each its own ({', '.join(names)})")
    return found


def read_all_claims(file: Path) -> list[Claim | SuccessClaim]:
    """Return the claims of a TOML file about speed-ups, then those about success.

    Raises `UserError` like `read_claims`.
    """
    raced = read_claims(file) if has_speedup_claims(file) else []
    return [*raced, *read_success_claims(file)]


def has_speedup_claims(file: Path) -> bool:
    """Return whether a file has a claim about a speed-up, or none about success."""
    table = read_toml(file)
    return "claim" in table or "success" not in table
