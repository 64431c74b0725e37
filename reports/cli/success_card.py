"""The lines and the JSON object of an audit of a claim about success."""

from __future__ import annotations

from typing import Any

from reports.audit.success import SuccessAudit
from reports.stats.success import Levels


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
        "left_out": [one._asdict() for one in found.left_out],
        "adjusted": {"verdict": found.adjusted, "p": found.adjusted_p},
    }


def success_lines(found: SuccessAudit) -> list[str]:
    """Return the card: claim, verdict with its reason, shares, and each pair of networks."""
    claim = found.claim
    by = f" by more than {claim.difference:g}" if claim.difference else ""
    beyond = f", beyond the difference in {claim.beyond}" if claim.beyond else ""
    lines = [
        claim.name,
        f'"{claim.candidate} has a higher {claim.metric} than {claim.baseline}{by}{beyond}"',
        f"{found.verdict.upper()}  {found.reason}",
    ]
    for name, levels in (("candidate", found.candidate), ("baseline", found.baseline)):
        if levels is not None:
            lines.append(f"  {name:<12}{_text(levels, '')}")
    if found.difference is not None:
        lines.append(f"  {'difference':<12}{_text(found.difference, '+')}")
    for seed, pair in found.pairs.items():
        lines.append(
            f"  seed {seed:<7}{pair.difference:+.3f} ({pair.low:+.3f} to {pair.high:+.3f}), only the "
            f"candidate {pair.only_first}, only the baseline {pair.only_second}, p = {pair.p:.3g}"
        )
    if found.adjusted is not None:
        lines.append(f"  adjusted (Holm): {found.adjusted}, p = {found.adjusted_p:.2g}")
    return [*lines, ""]


def _text(levels: Levels, sign: str) -> str:
    """Return a share or a difference with its interval and n."""
    ends = "" if levels.low is None else f" ({levels.low:{sign}.3f} to {levels.high:{sign}.3f})"
    return f"{levels.mean:{sign}.3f}{ends}, {levels.seeds} training seeds x {levels.starts} starts"
