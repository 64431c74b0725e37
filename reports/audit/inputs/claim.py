"""Claim files: a claimed speed-up, and the conditions that decide it.

    [claim]
    name = "self-flow-2.8x"
    candidate = "self_flow"      # a method, as named in the CSV or the record
    baseline = "repa"
    metric = "fid"
    target = "baseline@400000"   # or a number
    axis = "steps"               # steps, images, flops, seconds, gpu_seconds
    factor = 2.8
    kind = "at_least"            # or "equal"
    tolerance = 0.10             # 0 unless set
    confidence = 0.95
    min_pairs = 3

A claim that is judged before all its runs are done registers how often that may happen:

    [claim.sequential]
    kind = "group"               # or "anytime"
    max_pairs = 10
    spending = "linear"          # or "obrien_fleming", "pocock"

A file with several claims uses `[[claim]]`. The tuning budget of an arm may be recorded in the same file, or
in the `study.toml` of the runs:

    [tuning.self_flow]
    trials = 20
    flops = 1.2e18
    seeds = [100, 101]
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from harness.config.section import HASHED_IF_SET
from harness.config.spec import canonical
from harness.errors import UserError
from harness.files.files import read_toml
from harness.records.early_end import PATIENCE, EndRule
from harness.records.evaluations import falling
from harness.records.targets import step_of_baseline
from reports.stats.sequential import FIRST_LOOK, anytime_critical, boundaries

Axis = Literal["steps", "images", "flops", "seconds", "gpu_seconds"]
TABLES = ("claim", "tuning", "study", "success")
"""Tables of a file of claims; `study` is that of a race (sweeps/race/race_file.py), and `success` those of
success_claim.py."""
MOST_PAIRS = 200
"""The largest number of planned pairs, whose boundaries are computed in seconds."""
UNUSED = {"group": ("g",), "anytime": ("looks", "spending")}
"""Fields that a kind of sequential claim does not have."""
MOST_CONFIDENCE = 1 - 1e-9
"""The highest level of confidence; higher ones are those of rounding errors."""
FORMER_TOLERANCE = 0.10
"""The tolerance of a claim that sets none, in version 0.2 and before."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Sequential(Section):
    """The looks at a claim before all its runs are done, which its intervals account for."""

    kind: Literal["group", "anytime"] = "group"
    """`group` has a largest number of pairs, after which nothing is added. `anytime` holds at any number of
    pairs, and its intervals are wider."""
    max_pairs: int = Field(ge=FIRST_LOOK, le=MOST_PAIRS)
    """Number of pairs that are planned."""
    looks: tuple[int, ...] = ()
    """Numbers of pairs at which the claim is judged (group only); empty for every one from 3 on."""
    spending: Literal["linear", "obrien_fleming", "pocock"] = "linear"
    """Use of the error probability over the looks (group only), see reports/stats/sequential.py."""
    g: float = Field(25.0, gt=0)
    """Variance of the prior on the effect, in units of the spread (anytime only)."""
    seeds: tuple[int, ...] = ()
    """Seeds in the order in which pairs count; empty for 0, 1, 2, and so on."""
    floor: float = Field(0.0, ge=0, lt=1)
    """Smallest spread of log ratios to assume, for example the noise of `flowrace audit selftest`."""
    futility: float = Field(0.0, ge=0, lt=1)
    """Stop without a decision if the chance of one, as the pairs so far predict it, is below this."""
    until: Literal["end", "decided"] = Field("end", json_schema_extra=HASHED_IF_SET)
    """`decided` ends a run once it has crossed the target for good, and judges every run up to there."""
    patience: int = Field(PATIENCE, ge=1, le=MOST_PAIRS, json_schema_extra=HASHED_IF_SET)
    """Evaluations in a row at or below the target, after which a run has crossed it for good."""
    margin: float = Field(0.0, ge=0, lt=1, json_schema_extra=HASHED_IF_SET)
    """Share by which these evaluations are below the target."""

    @model_validator(mode="after")
    def _check_kind(self) -> Sequential:
        unused = {name: f'kind = "{self.kind}"' for name in UNUSED[self.kind]}
        unused |= {name: 'until = "end"' for name in ("patience", "margin") if self.until == "end"}
        for name, setting in unused.items():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect with {setting}")
        if self.looks and (list(self.looks) != sorted(set(self.looks)) or self.looks[0] < FIRST_LOOK):
            raise ValueError(f"looks must ascend from at least {FIRST_LOOK} pairs")
        if self.looks and self.looks[-1] != self.max_pairs:
            raise ValueError(f"the last of looks must be max_pairs = {self.max_pairs}")
        if self.seeds and len(set(self.seeds)) != self.max_pairs:
            raise ValueError(f"seeds must list max_pairs = {self.max_pairs} different seeds")
        return self

    @property
    def order(self) -> tuple[int, ...]:
        """The seeds in the order in which pairs count."""
        return self.seeds or tuple(range(self.max_pairs))

    @property
    def all_looks(self) -> tuple[int, ...]:
        """The numbers of pairs at which the claim is judged."""
        return self.looks or tuple(range(FIRST_LOOK, self.max_pairs + 1))

    def critical(self, n: int, alpha: float) -> float:
        """Return the critical value of the interval at the look of n pairs, alpha being two-sided."""
        if self.kind == "anytime":
            return anytime_critical(n, self.g, alpha)
        return boundaries(self.all_looks, alpha, self.spending)[n]


class Claim(Section):
    """One claimed speed-up."""

    name: str = Field(min_length=1)
    candidate: str = Field(min_length=1)
    baseline: str = Field(min_length=1)
    metric: str = Field(min_length=1)
    """A positive metric that is better when lower."""
    target: float | str
    """A value of the metric, or `baseline@STEP`: the baseline's value at that step, its median over seeds."""
    axis: Axis = "steps"
    factor: float = Field(gt=0)
    kind: Literal["at_least", "equal"] = "at_least"
    tolerance: float = Field(0.0, ge=0, le=1)
    """The relative slack of `factor` c; 0 unless the claim sets it.

    `at_least` holds from c / (1 + tolerance) on; `equal` holds from there up to c (1 + tolerance)."""
    confidence: float = Field(0.95, ge=0.5, le=MOST_CONFIDENCE)
    min_pairs: int = Field(3, ge=2)
    sequential: Sequential | None = Field(None, json_schema_extra=HASHED_IF_SET)
    """The looks at the claim before all its runs are done; None for a claim that is judged once."""

    @property
    def former(self) -> Claim:
        """The claim as version 0.2 read it: a claim that sets no tolerance had one of 10 %."""
        if "tolerance" in self.model_fields_set:
            return self
        return self.model_copy(update={"tolerance": FORMER_TOLERANCE})

    @property
    def low(self) -> float:
        """The smallest factor that fulfils the claim."""
        return self.factor / (1 + self.tolerance)

    @property
    def high(self) -> float:
        """The largest factor that fulfils the claim."""
        return self.factor * (1 + self.tolerance) if self.kind == "equal" else float("inf")

    @property
    def end_rule(self) -> EndRule | None:
        """The rule by which the runs of the claim end early; None if they go to their last step."""
        rule = self.sequential
        if rule is None or rule.until == "end" or isinstance(self.target, str):
            return None
        return EndRule(((self.metric, float(self.target)),), rule.patience, rule.margin)

    @property
    def step(self) -> int | None:
        """STEP of `baseline@STEP`; None for a target that is a number."""
        return step_of_baseline(self.target) if isinstance(self.target, str) else None

    @field_validator("target")
    @classmethod
    def _check_target(cls, target: float | str) -> float | str:
        if not (step_of_baseline(target) is not None if isinstance(target, str) else target > 0):
            raise ValueError('expected a number above 0 or "baseline@STEP", for example "baseline@400000"')
        return target

    @model_validator(mode="after")
    def _check_arms(self) -> Claim:
        if self.candidate == self.baseline:
            raise ValueError(
                f"candidate and baseline are both '{self.candidate}'; for a method against itself: "
                "flowrace audit selftest"
            )
        return self

    @model_validator(mode="after")
    def _check_looks(self) -> Claim:
        if self.sequential is not None and self.sequential.all_looks[0] < self.min_pairs:
            raise ValueError(
                f"sequential: the first look is at {self.sequential.all_looks[0]} pairs, but min_pairs = "
                f"{self.min_pairs}; set sequential.looks"
            )
        if self.sequential is None or self.sequential.until == "end":
            return self
        if self.step is not None:
            raise ValueError(
                f'sequential: until = "decided" needs a target that is a number, not {self.target}: runs '
                "are compared with it while they train"
            )
        if falling(self.metric) != self.metric:
            raise ValueError(
                f'sequential: until = "decided" needs a metric that falls, and {self.metric} rises; write '
                f"{falling(self.metric)} with the shortfall as its target"
            )
        if self.axis in ("seconds", "gpu_seconds"):
            raise ValueError(
                f'sequential: until = "decided" with axis = "{self.axis}": the seconds of a run to its last '
                "step would be unknown, and with them the horizon; use steps, images or flops"
            )
        return self


class Tuning(Section):
    """The budget spent on choosing an arm's settings; None if not recorded."""

    trials: int | None = Field(default=None, ge=0)
    flops: float | None = Field(default=None, ge=0)
    seeds: tuple[int, ...] = ()


def claim_hash(claim: Section) -> str:
    """Return 12 hex digits of the sha256 of the canonical JSON, whatever the layout of the file."""
    return hashlib.sha256(canonical(claim).encode()).hexdigest()[:12]


def with_other_pairs(claim: Claim) -> dict[str, int]:
    """Return the hashes of the same claim with other numbers of planned pairs, each with its number.

    A registered order of seeds is shortened, or does not count.
    """
    rule = claim.sequential
    if rule is None:
        return {}
    found = {}
    most = len(rule.seeds) or MOST_PAIRS
    for pairs in range(FIRST_LOOK, most + 1):
        looks = (*(n for n in rule.looks if n < pairs), pairs) if rule.looks else ()
        changed = {"max_pairs": pairs, "seeds": rule.seeds[:pairs], "looks": looks}
        if pairs != rule.max_pairs:
            other = rule.model_copy(update=changed)
            found[claim_hash(claim.model_copy(update={"sequential": other}))] = pairs
    return found


def raised_from(claim: Claim) -> dict[str, int]:
    """Return the hashes of earlier versions of an anytime claim, with fewer planned pairs.

    Its intervals hold at any number of pairs, so `max_pairs` may be raised after looks. Empty for a group
    claim, whose boundaries depend on it.
    """
    rule = claim.sequential
    if rule is None or rule.kind != "anytime":
        return {}
    return {other: pairs for other, pairs in with_other_pairs(claim).items() if pairs < rule.max_pairs}


def read_claims(file: Path) -> list[Claim]:
    """Return the claims of a TOML file.

    Raises `UserError`, which names the file, the key, its value and what is allowed.
    """
    table = read_toml(file)
    for key in sorted(table.keys() - set(TABLES)):
        raise UserError(f"{file}: unknown table '{key}' (known: {', '.join(TABLES)}).{_hint(key, TABLES)}")
    claims = table.get("claim")
    rows = [row for row in (claims if isinstance(claims, list) else [claims]) if isinstance(row, Mapping)]
    if not claims or len(rows) < (len(claims) if isinstance(claims, list) else 1):
        raise UserError(f"{file} contains no claim: expected a table [claim], or several [[claim]]")
    found = [validated(Claim, row, f"{file}: claim") for row in rows]
    names = [claim.name for claim in found]
    if len(set(names)) < len(names):
        raise UserError(f"{file}: two claims have the same name; give each its own ({', '.join(names)})")
    return found


def read_tuning(tables: Iterable[tuple[Path, Mapping[str, Any]]]) -> dict[str, Tuning]:
    """Return tuning budgets by method, from the `[tuning]` of each of these TOML tables; a later one wins."""
    found: dict[str, Tuning] = {}
    for file, table in tables:
        tuning = table.get("tuning", {})
        if not isinstance(tuning, Mapping) or not all(isinstance(row, Mapping) for row in tuning.values()):
            raise UserError(f"{file}: tuning must be given by method, for example [tuning.repa] trials = 20")
        found |= {name: validated(Tuning, row, f"{file}: tuning.{name}") for name, row in tuning.items()}
    return found


def validated(model: type[BaseModel], row: Mapping[str, Any], where: str) -> Any:
    """Validate as JSON: integers are accepted as floats and lists as tuples; nothing else is coerced."""
    try:
        return model.model_validate_json(json.dumps(row, default=str))
    except ValidationError as error:
        known = sorted(model.model_fields)
        raise UserError("; ".join(_sentence(detail, known, where) for detail in _errors(error))) from error


def _errors(error: ValidationError) -> list[ErrorDetails]:
    """Return one error per key: a field that takes a number or a text reports one error for each type."""
    return list({detail["loc"][:1]: detail for detail in reversed(error.errors())}.values())[::-1]


def _sentence(detail: ErrorDetails, known: Sequence[str], where: str) -> str:
    key = str(detail["loc"][0]) if detail["loc"] else ""
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        return f"{where}: unknown key '{key}' (known: {', '.join(known)}).{_hint(key, known)}"
    if detail["type"] == "missing":
        return f"{where}: {key} is missing"
    if not key:
        return f"{where}: {message}"
    value = json.dumps(detail["input"], default=str)
    return f"{where}: {key} = {value}: {message[0].lower()}{message[1:]}"


def _hint(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""
