"""Audits of claim files, for `flowrace audit` and for the top of a report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files.files import read_toml
from reports.audit.audit import Audit, adjust_family, audit_claim
from reports.audit.inputs.claim import (
    Claim,
    Tuning,
    claim_hash,
    raised_from,
    read_claims,
    read_tuning,
)
from reports.audit.inputs.read import read_logs
from reports.audit.inputs.run_log import AuditRuns, Progress
from reports.audit.inputs.success_claim import has_speedup_claims
from reports.audit.look_log import checked_with_log
from reports.audit.looks import adjust_looks, audit_sequential, first_pairs
from reports.audit.register import NAME, RegisterEntry, read_register, registered_as, standing
from reports.logs.log_map import LogMap
from reports.race.study_folder import read_study, study_tables


def judge_claims(
    claims: Sequence[Path],
    sources: Sequence[str],
    register: Path | None = None,
    progress: Progress = iter,
    labels: Mapping[str, str] | None = None,
    protocol: str | None = None,
    rules: LogMap | None = None,
    most_pairs: int | None = None,
) -> list[Audit]:
    """Judge the claimed speed-ups of these files on the runs of these sources (`read_arms`), as one family.

    Files with claims about success alone are left out (success.py).
    Without `register` the register next to each claim is used. `labels` are shown names in addition to those
    of the study. `protocol` chooses the conditions of evaluations, for example `guidance=1.5`, and `rules`
    the way to read logs. `most_pairs` is the last look of sequential claims to take. Raises `UserError` for a
    file or source that cannot be read, and for an arm or metric that the runs do not have.
    """
    tuning = read_tuning(_tables(claims, sources))
    names = dict(read_study([Path(source) for source in sources]).labels) | dict(labels or {})
    found, read, about = [], [], []
    for file in filter(has_speedup_claims, claims):
        entries = read_register(register or file.with_name(NAME))
        for claim in (_registered(claim, entries) for claim in read_claims(file)):
            logs = read_logs(sources, claim, progress, protocol, rules)
            if most_pairs is not None:
                logs = first_pairs(claim, logs, most_pairs, tuning)
            judge = audit_claim if claim.sequential is None else audit_sequential
            one = judge(claim, logs, tuning, standing(claim, entries, logs.all))
            found.append(one)
            about.append(_about_raise(claim, entries))
            read.append(logs)
    folders = _folders(sources)
    adjusted = [checked_with_log(one, folders) for one in _adjusted(found, read, tuning)]
    return [
        replace(one, names=names, notes=(*one.notes, *more))
        for one, more in zip(adjusted, about, strict=True)
    ]


def _about_raise(claim: Claim, entries: Mapping[str, RegisterEntry]) -> list[str]:
    """Report that the planned pairs of an anytime claim were raised after it was registered."""
    entry, rule = registered_as(claim, entries), claim.sequential
    if rule is None or entry is None or (before := raised_from(claim).get(entry.hash)) is None:
        return []
    return [
        f"max_pairs was raised from {before} to {rule.max_pairs} after the claim was registered; an anytime "
        "interval holds at any number of pairs."
    ]


def _adjusted(found: list[Audit], read: list[AuditRuns], tuning: Mapping[str, Tuning]) -> list[Audit]:
    """Return the audits of a family with adjusted verdicts."""
    kinds = {one.claim.sequential is not None for one in found}
    if len(kinds) > 1:
        once = next(one.claim.name for one in found if one.claim.sequential is None)
        raise UserError(
            f"claim {once} has no [claim.sequential], but another claim of this family has; audit them "
            "separately, or register both kinds alike"
        )
    return adjust_looks(found, read, tuning) if True in kinds else adjust_family(found)


def _folders(sources: Sequence[str]) -> list[Path]:
    """Return the sources that are folders, which may have a log of looks."""
    return [path for path in map(Path, sources) if path.is_dir()]


def _registered(claim: Claim, entries: Mapping[str, RegisterEntry]) -> Claim:
    """Return the claim that was registered.

    Version 0.2 registered a tolerance of 10 % for a claim that sets none.
    """
    known = {claim_hash(claim), claim_hash(claim.former)} & entries.keys()
    return claim.former if known == {claim_hash(claim.former)} else claim


def _tables(claims: Iterable[Path], sources: Iterable[str]) -> list[tuple[Path, dict[str, Any]]]:
    """Return the files that may record tuning budgets: studies, then claims."""
    studies = study_tables([Path(source) for source in sources])
    return [*studies, *((file, read_toml(file)) for file in claims)]
