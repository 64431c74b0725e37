"""The texts of an audit of a claim about success, for the terminal and for a page."""

from __future__ import annotations

from typing import NamedTuple

from reports.audit.inputs.claim import claim_hash
from reports.audit.success import SuccessAudit
from reports.stats.success import Levels


class SuccessLine(NamedTuple):
    """A share of successes, or a difference of two, as text."""

    name: str
    value: str
    interval: str
    n: str


def claimed_success(found: SuccessAudit) -> str:
    """Return the claim as a sentence."""
    claim = found.claim
    by = f" by more than {claim.difference:g}" if claim.difference else ""
    beyond = f", beyond the difference in {claim.beyond}" if claim.beyond else ""
    return f"{claim.candidate} has a higher {claim.metric} than {claim.baseline}{by}{beyond}"


def success_lines(found: SuccessAudit) -> list[SuccessLine]:
    """Return a line for each arm and one for their difference; empty without enough runs."""
    sides = {"candidate": found.candidate, "baseline": found.baseline}
    lines = [_line(name, levels, "") for name, levels in sides.items() if levels is not None]
    return lines if found.difference is None else [*lines, _line("difference", found.difference, "+")]


def success_facts(found: SuccessAudit) -> list[str]:
    """Return the comparison of the networks of each training seed, and the registration."""
    pairs = [
        f"seed {seed}: {pair.difference:+.3f} ({pair.low:+.3f} to {pair.high:+.3f}), only the candidate "
        f"{pair.only_first}, only the baseline {pair.only_second}, p = {pair.p:.3g}"
        for seed, pair in found.pairs.items()
    ]
    return [*pairs, f"claim {claim_hash(found.claim)}, {found.standing}"]


def _line(name: str, levels: Levels, sign: str) -> SuccessLine:
    ends = "" if levels.low is None else f"({levels.low:{sign}.3f} to {levels.high:{sign}.3f})"
    n = f"{levels.seeds} training seeds x {levels.starts} starts"
    return SuccessLine(name, f"{levels.mean:{sign}.3f}", ends, n)
