"""The log of looks of a race: what each look saw, in an append-only file (`looks.jsonl`) of its study.

The times of every pair are recorded as they were at the look. A run that was trained again until it fitted,
a seed that was left out later, or a claim that was changed between looks no longer agrees with this file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.files.hash_chain import Row, open_chain, read_chain, read_heads
from harness.files.terminal import shown
from harness.records.shapes import is_amount, is_count, is_number
from harness.records.study_folder import PLAN, LastLook, StudyFolder
from reports.audit.audit import Audit
from reports.audit.inputs.claim import Claim, claim_hash, raised_from, with_other_pairs
from reports.audit.looks import is_futile
from reports.audit.preconditions import Reason
from reports.stats.speedup import Speedup

WHAT = "a log of looks"
TOLERANCE = 1e-9
SEED_DIGITS = 20
"""Most digits of a seed, which is below 2**64."""
MENDED_BY_PAIRS = ("interval", "pairs", "bracket", "censored")
"""Reasons of an inconclusive audit that further pairs may remove."""


def record_look(folder: Path, n: int, audits: Sequence[Audit]) -> Row:
    """Append the look at n pairs to the log of a study, and return it; a look that it has is returned as it
    is.

    A claim that has ended stays so: a futile arm gets no more runs when Holm's method leaves it more of the
    error probability, or when its planned pairs are raised. Raises `UserError` for a log that was altered
    or cannot be written.
    """
    with open_chain(StudyFolder(folder).looks_file, _is_look, WHAT, drop_torn=True) as log:
        for row in log.rows:
            if row["look"] == n:
                return row
        ends = {seen["hash"]: seen["ended"] for row in log.rows for seen in row["claims"] if seen["ended"]}
        return log.append({"look": n, "claims": [_seen(audit, ends) for audit in audits]})


def read_looks(folder: Path) -> list[Row]:
    """Return the looks of a study in their order; empty without a log."""
    return read_chain(StudyFolder(folder).looks_file, _is_look, WHAT, drop_torn=True)


def last_look(folder: Path) -> LastLook | None:
    """Return the end of a study's log of looks; None without a look."""
    heads = read_heads(StudyFolder(folder).looks_file)
    return LastLook(len(heads), heads[-1]) if heads else None


def cut_log(folder: Path) -> str:
    """Return what a study's log of looks lacks of the looks that its plan counts; empty if nothing.

    A line that is appended after the plan was written is no fault: a race that was killed left it.
    """
    file, plan = StudyFolder(folder).looks_file, StudyFolder(folder).plan
    known = plan.last_look if plan else None
    heads = read_heads(file)
    if known is None or heads[known.count - 1 : known.count] == [known.head]:
        return ""
    if len(heads) >= known.count:
        return f"{file.name} was replaced: its look {known.count} is not the one that {PLAN} records"
    return (
        f"{file.name} was cut or removed: it has {len(heads)} of the {known.count} looks that {PLAN} records"
    )


def checked_with_log(audit: Audit, folders: Iterable[Path]) -> Audit:
    """Return the audit of a sequential claim with what disagrees with the logs of looks in these folders.

    A disagreement makes an audit inconclusive.
    """
    if audit.claim.sequential is None:
        return audit
    problems = []
    for folder in folders:
        problems += [text] if (text := cut_log(folder)) else []
        problems += _problems(audit, read_looks(folder))
    if not problems:
        return audit
    reasons = [Reason("looks", text) for text in dict.fromkeys(problems)]
    others = [own for own in audit.reasons if own.name != "interval"]
    adjusted = None if audit.adjusted is None else "inconclusive"
    return replace(audit, verdict="inconclusive", adjusted=adjusted, reasons=(*reasons, *others))


def times_by_seed(audit: Audit) -> dict[str, list[list[Any]]]:
    """Return the time and its censoring of both arms, by seed, on the claim's axis and before any cut."""
    if audit.crossings is None:
        return {}
    arms = (audit.logs.baseline, audit.logs.candidate)
    found: dict[str, list[list[Any]]] = {}
    for arm, crossings in zip(arms, audit.crossings, strict=True):
        for seed, run in arm.items():
            one = crossings[seed]
            time = float(run.costs.at(audit.claim.axis, one.step))
            found.setdefault(str(seed), []).append([time, one.censored])
    return found


def ended(audit: Audit) -> str:
    """Return how a claim of a race has ended, after adjustment over its family; empty if it has not.

    A claim that a precondition stops has ended too, unless further pairs may mend it.
    """
    if audit.verdict != "inconclusive":
        return audit.verdict
    blocking = [own for own in audit.reasons if own.name not in MENDED_BY_PAIRS]
    if blocking:
        return f"inconclusive: {blocking[0]}"
    return "futile" if is_futile(audit.claim, audit) else ""


def _seen(audit: Audit, ends: Mapping[str, str]) -> dict[str, Any]:
    """Return what a look saw of one claim; `ends` has the ends at earlier looks by hash."""
    claim, last = audit.claim, audit.looks[-1] if audit.looks else None
    own = claim_hash(claim)
    earlier = [ends[one] for one in (own, *raised_from(claim)) if one in ends] if ends else []
    return {
        "hash": own,
        "name": claim.name,
        "arms": [claim.baseline, claim.candidate],
        "factor": [claim.low, _finite(claim.high)],
        "n": last.n if last else 0,
        "critical": _finite(last.critical) if last else None,
        "speedup": _ends(last.gain if last else None),
        "verdict": audit.verdict,
        "ended": earlier[0] if earlier else ended(audit),
        "times": times_by_seed(audit),
    }


def _problems(audit: Audit, looks: Sequence[Row]) -> list[str]:
    claim, own = audit.claim, claim_hash(audit.claim)
    now, found = times_by_seed(audit), []
    same = {own, *raised_from(claim)}
    for row in looks:
        for seen in row["claims"]:
            if seen["hash"] in same:
                found += _changed_times(row["look"], seen, now, audit)
            elif seen["name"] == claim.name:
                found.append(
                    f"the look at {row['look']} pairs was taken under another version of this claim "
                    f"({seen['hash']}, now {own}{other_pairs(claim, seen['hash'])})"
                )
    hashes = {seen["hash"] for row in looks for seen in row["claims"]}
    if looks and not same & hashes and not found:
        found.append(
            f"the race looked {len(looks)} times without this claim ({own}), so it was chosen after looks at "
            "its runs"
        )
    return found


def other_pairs(claim: Claim, other: str) -> str:
    """Return what distinguishes another version of a claim, if it is the number of planned pairs alone."""
    rule, pairs = claim.sequential, with_other_pairs(claim).get(other)
    if rule is None or pairs is None:
        return ""
    allowed = '; only kind = "anytime" may be raised' if pairs < rule.max_pairs else ""
    return f": max_pairs was {pairs}, now {rule.max_pairs}{allowed}"


def _changed_times(
    look: int, seen: Mapping[str, Any], now: Mapping[str, list[list[Any]]], audit: Audit
) -> list[str]:
    """Return the pairs whose times are no longer those of a look."""
    # An audit that a precondition stops has no times to compare.
    if audit.crossings is None:
        return []
    texts = []
    for seed, then in seen["times"].items():
        if seed not in now and int(seed) not in _left_out(audit):
            texts.append(f"the look at {look} pairs counted seed {seed}, which is missing now")
        elif seed in now and not _equal(then, now[seed]):
            texts.append(
                f"the look at {look} pairs saw other times of seed {seed} "
                f"({_words(then)}, now {_words(now[seed])}): its runs were replaced or trained again"
            )
    return texts


def _left_out(audit: Audit) -> set[int]:
    """Return seeds that the deciding look did not count, which later looks of other claims may have."""
    rule = audit.claim.sequential
    if rule is None or audit.verdict == "inconclusive" or not audit.looks:
        return set()
    return set(rule.order[audit.looks[-1].n :])


def _equal(then: Sequence[Sequence[Any]], now: Sequence[Sequence[Any]]) -> bool:
    return len(then) == len(now) and all(
        one[1] == two[1] and math.isclose(one[0], two[0], rel_tol=TOLERANCE)
        for one, two in zip(then, now, strict=True)
    )


def _words(times: Sequence[Sequence[Any]]) -> str:
    return " and ".join(f"{time:.6g}{'' if censored is None else ' or more'}" for time, censored in times)


def _is_look(row: Row) -> bool:
    return is_count(row["look"]) and all(map(_is_seen, row["claims"]))


# Any: a value of JSON.
def _is_seen(seen: Any) -> bool:
    """Return whether a value has what a look saw of one claim."""
    texts = (seen["hash"], seen["name"], seen["verdict"], seen["ended"], *seen["arms"])
    low, high = seen["factor"]
    estimate, *ends = seen["speedup"]
    numbers = [value for value in (high, estimate, *ends, seen["critical"]) if value is not None]
    return (
        all(isinstance(text, str) and shown(text) == text for text in texts)
        and len(seen["arms"]) == len(ends) == 2
        and is_number(low)
        and low > 0
        and (estimate is None or estimate > 0)
        and all(is_amount(value) for value in numbers)
        and is_count(seen["n"])
        and all(_is_seed(seed) and _are_times(pair) for seed, pair in seen["times"].items())
    )


def _is_seed(text: str) -> bool:
    return text.isdecimal() and len(text) <= SEED_DIGITS


def _are_times(pair: Any) -> bool:
    return len(pair) <= 2 and all(
        is_amount(time) and censored in (None, "left", "right") for time, censored in pair
    )


def _ends(gain: Speedup | None) -> list[float | None]:
    """Return estimate, low and high end; None for an open end."""
    if gain is None:
        return [None, None, None]
    return [gain.estimate, gain.low, None if gain.high is None else _finite(gain.high)]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
