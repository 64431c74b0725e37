"""The lines and the JSON object of an audit of a claim about success."""

from __future__ import annotations

from typing import Any

from reports.audit.inputs.claim import claim_hash
from reports.audit.success import SuccessAudit
from reports.audit.success_words import claimed_success, success_facts, success_lines


# Any: JSON.
def success_json(found: SuccessAudit) -> dict[str, Any]:
    """Return the JSON object of an audit; missing values are null."""
    sides = {"candidate": found.candidate, "baseline": found.baseline, "difference": found.difference}
    return {
        "name": found.claim.name,
        "verdict": found.verdict,
        "reasons": [found.reason],
        "metric": found.claim.metric,
        **{name: None if levels is None else levels._asdict() for name, levels in sides.items()},
        "pairs": {str(seed): pair._asdict() for seed, pair in found.pairs.items()},
        "n_pairs": len(found.seeds),
        "p": found.p,
        "left_out": [one._asdict() for one in found.left_out],
        "adjusted": {"verdict": found.adjusted, "p": found.adjusted_p},
        "claim_hash": claim_hash(found.claim),
        "registration": found.standing,
    }


def success_card(found: SuccessAudit) -> str:
    """Return the card: claim, verdict with its reason, shares, and each pair of networks."""
    lines = [found.claim.name, f'"{claimed_success(found)}"', f"{found.verdict.upper()}  {found.reason}"]
    for name, value, interval, n in success_lines(found):
        lines.append(f"  {name:<12}{value}{f' {interval}' if interval else ''}, {n}")
    lines += [f"  {fact}" for fact in success_facts(found)]
    if found.adjusted is not None:
        lines.append(f"  adjusted (Holm): {found.adjusted}, p = {found.adjusted_p:.2g}")
    return "\n".join([*lines, ""])
