"""Targets: the metric values that runs must reach, as numbers or relative to the baseline's own runs.

    8.0               a value of the metric
    baseline@400      the baseline's value at step 400; flow@400 is that of the arm flow
    90%               the value at which the baseline has made 90 % of its way from first to final evaluation

A relative target is computed from the antitonic fits of the baseline's finished runs (`antitonic`):

    ARM@STEP          median over seeds of fitted(STEP), linear in logs between evaluations
    share p           first - p (first - last), with first and last the medians over seeds of the fitted
                      values at each run's first evaluation after step 0 and at its last one

The median is AlgoPerf's rule, and claims use the same (reports/audit). In a study with several cells each
cell has its own value, because its baseline has its own runs. No torch.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from harness.config.training_spec import DECAYS_TO_THE_END
from harness.errors import UserError
from harness.records.evaluations import falling
from harness.records.flatten import flatten
from harness.records.measured import measured
from harness.records.record import Record

FORMS = "8.0, a list 8,10, baseline@400, or 90% (of the way to the baseline's final value)"
BASELINE = "baseline"
AT_STEP = re.compile(r"([^@,]*[^@,\s])@([1-9][0-9]*(?:_[0-9]+)*)")
OBJECTIVE = ("method.", "start.arm", "start.frozen")
"""Prefixes of the fields of an objective: the method, and what a network was pretrained by."""
OF_SEED = ("start.run", "start.run_step", "start.file")
"""Fields that name a pretrained run, whose arm is `start.arm`: they differ between the seeds of an arm."""
SHARE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?%")


@dataclass(frozen=True)
class TargetRule:
    """A rule that gives a target; exactly one field is set."""

    value: float | None = None
    step: int | None = None
    """The step of `ARM@STEP`."""
    share: float | None = None
    """The share of the baseline's way to its final value, between 0 and 1."""
    arm: str = BASELINE
    """The arm of `ARM@STEP`: a method, a label, or `baseline`."""

    def __str__(self) -> str:
        if self.value is not None:
            return f"{self.value:.10g}"
        return f"{self.arm}@{self.step}" if self.share is None else f"{100 * self.share:.10g}%"

    @property
    def relative(self) -> bool:
        """Return whether the target depends on the runs of an arm."""
        return self.value is None

    def described(self, baseline: str) -> str:
        """Return how the target is found, in words; empty for a number."""
        if self.step is not None:
            arm = baseline if self.arm == BASELINE else self.arm
            return f"the value of {arm} at step {self.step:,}, median over seeds"
        if self.share is not None:
            way = "of the way from its first to its final evaluation, medians over seeds"
            return f"{baseline} has made {100 * self.share:g} % {way}"
        return ""


def parse_targets(text: str | float, name: str = "--target") -> tuple[TargetRule, ...]:
    """Return the rules in a text such as `8.0`, `8,10`, `baseline@400` or `90%`.

    Raises `UserError` for anything else, with the given name of the option.
    """
    rules = tuple(_parsed(part.strip(), name) for part in str(text).split(","))
    return tuple(dict.fromkeys(rules))


def falling_rules(metric: str | None, rules: Iterable[TargetRule]) -> tuple[TargetRule, ...]:
    """Return the rules for the name under which a metric falls: a success of 0.8 is a shortfall of 0.2.

    Raises `UserError` for a success of 1 or more, because curves are of logarithms of the shortfall.
    """
    if metric is None or falling(metric) == metric:
        return tuple(rules)
    return tuple(_turned(rule, metric) for rule in rules)


def _turned(rule: TargetRule, metric: str) -> TargetRule:
    if rule.value is None:
        return rule
    if rule.value >= 1:
        raise UserError(f"target {rule} of {metric}: expected a share below 1, for example --target 0.8")
    return replace(rule, value=round(1 - rule.value, 12))


def rule_at_step(text: str) -> TargetRule | None:
    """Return the rule of `ARM@STEP`, for example `baseline@400`; None for any other text."""
    match = AT_STEP.fullmatch(text)
    return TargetRule(step=int(match[2]), arm=match[1]) if match else None


def step_of_baseline(text: str) -> int | None:
    """Return STEP of `baseline@STEP`; None for any other text."""
    rule = rule_at_step(text)
    return rule.step if rule is not None and rule.arm == BASELINE else None


def antitonic(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Return antitonic least squares of log value, in order of step (pool adjacent violators), as values."""
    # Imported here, because `--help` shows no number.
    from scipy.optimize import isotonic_regression

    return np.exp(isotonic_regression(np.log(values), weights=weights, increasing=False).x)


def target_value(rule: TargetRule, fits: Sequence[tuple[np.ndarray, np.ndarray]]) -> float | None:
    """Return the target, from (steps, fitted values) of each finished run of the arm that sets it.

    None if it has no finished run yet. Raises `UserError` for a step that no run covers.
    """
    if rule.value is not None:
        return rule.value
    if not fits:
        return None
    if rule.share is not None:
        first, last = (statistics.median(float(fitted[end]) for _, fitted in fits) for end in (0, -1))
        return first - rule.share * (first - last)
    assert rule.step is not None
    found = [_at(steps, fitted, rule.step) for steps, fitted in fits if steps[0] <= rule.step <= steps[-1]]
    if not found:
        low, high = max(steps[0] for steps, _ in fits), min(steps[-1] for steps, _ in fits)
        raise UserError(
            f"target {rule}: no finished run of the {rule.arm} was evaluated on both sides of step "
            f"{rule.step}; give a step from {low:g} to {high:g}"
        )
    return statistics.median(found)


def fit_of(record: Record, metric: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return steps after 0 and the fitted metric of a record; None if it was not evaluated."""
    found = measured(record, metric)
    if found is None or not (np.isfinite(found.means) & (found.means > 0)).all():
        return None
    return found.steps, antitonic(found.means, found.weights)


def baseline_records(record: Record, records: Sequence[Record], baseline: str) -> list[Record]:
    """Return the finished runs of the baseline's method in the cell of a record.

    The fields in which runs of the baseline differ from each other, except the seed and those of the
    objective, distinguish cells. Of runs of the method, those from initial weights are the baseline's. If no
    run is, they are those that start like the record.
    """
    runs = [one for one in records if _method(one) == baseline]
    scratch = [one for one in runs if not _pretrained_by(one)[0]]
    runs = scratch or [one for one in runs if _pretrained_by(one) == _pretrained_by(record)]
    specs = [_cell_fields(one.spec) for one in runs]
    paths = sorted({path for spec in specs for path in spec})
    varied = [path for path in paths if any(spec.get(path) != specs[0].get(path) for spec in specs)]
    own = _cell_fields(record.spec)
    same = [all(spec.get(path) == own.get(path) for path in varied) for spec in specs]
    found = [run for run, fits in zip(runs, same, strict=True) if fits and run.status == "done"]
    # Those that ended early are the fast ones, so that the others would be a selection.
    if early := next((run for run in found if run.early_end is not None), None):
        raise UserError(
            f"a target relative to {baseline} needs its runs to their last step, but {early.path} "
            f"{early.early_end}; give a number, or continue it with flowrace extend"
        )
    return found


def _parsed(text: str, name: str) -> TargetRule:
    if (rule := rule_at_step(text)) is not None:
        return rule
    if match := SHARE.fullmatch(text):
        return share_rule(float(match[1]) / 100, f"{name} {text}")
    try:
        value = float(text)
    except ValueError as error:
        raise UserError(f"{name} {text}: expected a target, for example {FORMS}") from error
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"{name.removeprefix('--')} {value:g}: expected a number above 0")
    return TargetRule(value=value)


def share_rule(share: float, where: str) -> TargetRule:
    """Return the rule of a share of the baseline's way; raises `UserError` outside 0 to 1."""
    if not 0 < share <= 1:
        raise UserError(f"{where}: expected a share above 0 % and up to 100 %")
    return TargetRule(share=share)


def _at(steps: np.ndarray, fitted: np.ndarray, step: float) -> float:
    return float(np.exp(np.interp(math.log(step), np.log(steps), np.log(fitted))))


def _method(record: Record) -> str:
    return str(record.spec.get("method", {}).get("name", ""))


def _pretrained_by(record: Record) -> tuple[str, bool]:
    """Return the arm of a first stage that a run starts from, empty for none, and whether it is frozen."""
    start = record.spec.get("start", {})
    return str(start.get("arm", "")), bool(start.get("frozen", False))


def _cell_fields(spec: Mapping) -> dict[str, object]:
    """Return the fields of a spec that can distinguish cells, by dotted path.

    Those of the objective do not. Evaluation and the number of steps do not either, because a run can be
    measured again and extended.
    """
    fields = flatten(spec)
    ignored = (*OBJECTIVE, "runtime.", "tracking.", "eval.")
    decays = fields.get("train.decay", "none") in DECAYS_TO_THE_END
    free = {"seed", *OF_SEED, *({} if decays else {"train.steps"})}
    return {
        path: value for path, value in fields.items() if path not in free and not path.startswith(ignored)
    }
