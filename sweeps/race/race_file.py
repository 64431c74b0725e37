"""Race files: sequential claims and the study whose runs decide them, in one TOML file.

    study = "digits"             # a study by name or file; or the tables of a study under [study]

    [claim]
    ...
    [claim.sequential]
    max_pairs = 6

Seeds of the study are replaced by the registered seeds of the claims, and arms that no claim names are left
out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.errors import UserError, unknown
from harness.files.files import read_toml
from harness.records.early_end import EndRule
from reports.audit.inputs.claim import Claim, Sequential, claim_hash, raised_from, read_claims
from sweeps.plan.plan import PlannedRun, StudyPlan
from sweeps.plan.study import END_SETTINGS, Study, load_study_table, study_of

METHODS = "method.name"


@dataclass(frozen=True)
class Race:
    """The claims of a race, and its study with the registered seeds."""

    file: Path
    claims: tuple[Claim, ...]
    study: Study
    notes: tuple[str, ...] = ()

    @property
    def rule(self) -> Sequential:
        """The registered looks, which all claims of a race share."""
        rule = self.claims[0].sequential
        assert rule is not None
        return rule

    @property
    def arms(self) -> tuple[str, ...]:
        """Every method that a claim names, baselines first."""
        names = [claim.baseline for claim in self.claims] + [claim.candidate for claim in self.claims]
        return tuple(dict.fromkeys(names))

    @property
    def hashes(self) -> list[str]:
        """The hash of each claim."""
        return [claim_hash(claim) for claim in self.claims]

    def end_of(self, arm: str) -> EndRule | None:
        """Return the rule by which runs of an arm end early: those of all claims that name it."""
        rules = [claim.end_rule for claim in self.claims if arm in (claim.baseline, claim.candidate)]
        targets: dict[str, float] = {}
        for rule in rules:
            for metric, value in rule.targets if rule is not None else ():
                targets[metric] = min(value, targets.get(metric, value))
        if not targets:
            return None
        return EndRule(tuple(sorted(targets.items())), self.rule.patience, self.rule.margin)

    def current(self, found: str) -> str:
        """Return the hash of the claim that had this hash before its planned pairs were raised, else the
        same."""
        return self._earlier.get(found, found)

    @cached_property
    def _earlier(self) -> dict[str, str]:
        return {one: claim_hash(claim) for claim in self.claims for one in raised_from(claim)}

    def arms_of(self, hashes: Iterable[str]) -> set[str]:
        """Return the methods that the claims with these hashes compare."""
        wanted = set(map(self.current, hashes))
        chosen = [claim for claim in self.claims if claim_hash(claim) in wanted]
        return {arm for claim in chosen for arm in (claim.baseline, claim.candidate)}


def read_race(file: Path, overrides: Iterable[str] = ()) -> Race:
    """Read a race file, with overrides `a.b=v` of fields of its runs.

    Raises `UserError` for a file without a study, claims that are not sequential or register different looks,
    arms that the study does not have, and a study that varies more than methods and seeds.
    """
    claims = read_claims(file)
    rule = _shared_rule(claims, file)
    table, source = _study_table(file)
    table, notes = _with_seeds(table, rule.order)
    axes = table["axes"]
    known = axes.get(METHODS, [])
    if not known:
        raise UserError(
            f'{source}: a race needs the axis "{METHODS}", whose values are the arms of its claims'
        )
    for claim in claims:
        for arm in (claim.baseline, claim.candidate):
            if arm not in known:
                raise unknown(f"arm of claim {claim.name}", arm, known, see=f'axes."{METHODS}" of the study')
    named = {arm for claim in claims for arm in (claim.baseline, claim.candidate)}
    if idle := [arm for arm in known if arm not in named]:
        notes.append(f"arms that no claim names are not run: {', '.join(map(str, idle))}")
    axes[METHODS] = [arm for arm in known if arm in named]
    study = study_of(_with_target(table, claims), source, overrides)
    if more := sorted(set(study.paths) - {"seed", METHODS}):
        raise UserError(
            f"{source}: a race has one run of each arm and seed, but the study also varies "
            f"{', '.join(more)}; fix these fields in [set]"
        )
    return Race(file, tuple(claims), study, tuple(notes))


def with_ends(race: Race, plan: StudyPlan) -> StudyPlan:
    """Return a plan whose runs have the rule of their early end."""
    return replace(plan, runs=[replace(run, end=race.end_of(run.spec.method.name)) for run in plan.runs])


def pairs_until(race: Race, plan: StudyPlan, n: int, arms: Iterable[str]) -> list[PlannedRun]:
    """Return the planned runs of these arms for the first n registered seeds, seed by seed."""
    wanted, order = set(arms), race.rule.order[:n]
    runs = [
        run for run in with_ends(race, plan).runs if run.spec.method.name in wanted and run.spec.seed in order
    ]
    return sorted(runs, key=lambda run: order.index(run.spec.seed))


def _shared_rule(claims: Sequence[Claim], file: Path) -> Sequential:
    for claim in claims:
        if claim.sequential is None:
            raise UserError(
                f"{file}: claim {claim.name} has no [claim.sequential], which a race needs; add it, for "
                "example max_pairs = 6"
            )
    rules = [claim.sequential for claim in claims if claim.sequential is not None]
    for claim, rule in zip(claims, rules, strict=True):
        if rule != rules[0] or claim.confidence != claims[0].confidence:
            raise UserError(
                f"{file}: claims {claims[0].name} and {claim.name} register different looks; the claims of "
                "one race share [claim.sequential] and confidence"
            )
    return rules[0]


def _study_table(file: Path) -> tuple[dict[str, Any], str]:
    """Return the table of a race's study, and the name to show in errors."""
    study = read_toml(file).get("study")
    if isinstance(study, Mapping):
        return dict(study), f"{file}: study"
    if not isinstance(study, str):
        raise UserError(f'{file}: a race needs a study: study = "digits", a file, or the tables of [study]')
    beside = file.parent / study
    source = str(beside) if beside.is_file() else study
    return load_study_table(source), source


def _with_seeds(table: Mapping[str, Any], order: Sequence[int]) -> tuple[dict[str, Any], list[str]]:
    """Return a study's table with the registered seeds, and a note if it had others."""
    axes = {path: list(values) if isinstance(values, list) else values for path, values in _axes(table)}
    seeds = {key: value for key, value in dict(table.get("seeds", {})).items() if key != "audit"}
    before = axes.get("seed")
    notes = []
    if before is not None and before != list(order):
        notes.append(f"seeds {_listed(order)} of the claim replace seeds {_listed(before)} of the study")
    axes["seed"] = list(order)
    table = {**table, "axes": axes}
    return ({**table, "seeds": seeds} if "seeds" in table else table), notes


def _axes(table: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    axes = table.get("axes", {})
    if not isinstance(axes, Mapping):
        return
    for path, value in axes.items():
        if isinstance(value, Mapping):
            yield from ((f"{path}.{inner}", own) for inner, own in value.items())
        else:
            yield path, value


def _with_target(table: Mapping[str, Any], claims: Sequence[Claim]) -> dict[str, Any]:
    """Return a study's table with the baseline and target of the claims, if these agree on a number.

    A target of the study that the end of a run sets is replaced if runs end early, because a report could not
    compute it: by the numbers of the claims, or by its metric alone if these have several metrics. The early
    end of runs is that of the claims.
    """
    targets = {(claim.metric, claim.target) for claim in claims}
    ends = ("until", *END_SETTINGS)
    baselines = {claim.baseline for claim in claims}
    found = dict(table)
    if isinstance(table.get("target"), Mapping):
        found["target"] = {key: value for key, value in table["target"].items() if key not in ends}
    if len(baselines) == 1:
        found["baseline"] = baselines.pop()
    metric, target = next(iter(targets))
    if len(targets) == 1 and not isinstance(target, str):
        found["target"] = {"metric": metric, "value": float(target)}
    elif any(claim.end_rule is not None for claim in claims) and _is_relative(table.get("target")):
        if len({claim.metric for claim in claims}) == 1:
            values = dict.fromkeys(float(claim.target) for claim in claims)
            found["target"] = {"metric": metric, "values": list(values)}
        else:
            found["target"] = {key: value for key, value in found["target"].items() if key == "metric"}
    return found


# Any: a value of TOML.
def _is_relative(target: Any) -> bool:
    """Return whether a study's target is read from its runs."""
    return isinstance(target, Mapping) and not {"at", "share_of_final"}.isdisjoint(target)


def _listed(seeds: Iterable[Any]) -> str:
    return ", ".join(map(str, seeds))
