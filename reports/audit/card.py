"""An audit in words: a card for people and an object for machines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from reports.audit.audit import Audit
from reports.audit.claim import claim_hash
from reports.audit.preconditions import CLOCK, hardware
from reports.audit.preconditions import differing as differing_fields
from reports.audit.shape import ends_above, horizon
from reports.audit.survival import kaplan_meier, mean_until
from reports.curves import AXES
from reports.speedup import Speedup
from reports.verdict import FEWER, factor, interval

COLOURS = {"supported": "green", "refuted": "red", "inconclusive": "yellow"}
WIDTH = 80


def as_json(found: Audit) -> dict[str, Any]:
    """One object; an end of an interval that is open, and what there is not, is null."""
    own = found.gain
    return {
        "name": found.claim.name,
        "verdict": found.verdict,
        "reasons": [str(reason) for reason in found.reasons],
        "direction": own.direction if own else "unresolved",
        "axes": {axis: _ends((found.gains or {}).get(axis)) for axis in AXES},
        "n_pairs": found.n_pairs,
        "paired": own.paired if own else None,
        "correlation": own.correlation if own else None,
        "censored": _censored(found),
        "target": found.target,
        "detectable_factor": found.detectable,
        "more_pairs": found.more_pairs,
        "p": found.p,
        "adjusted": {"verdict": found.adjusted, "p": found.adjusted_p},
        "slopes": dict(found.slopes or {}),
        "first_crossing": _ends(found.first),
        "dual": _ends(found.dual.gain) | {"step": found.dual.step} if found.dual else None,
        "by_target": [{"target": target} | _ends(one) for target, one in found.curve],
        "reached": _reached(found),
        "claim_hash": claim_hash(found.claim),
        "registration": found.standing,
        "notes": notes(found),
    }


def _ends(gain: Speedup | None) -> dict[str, float | None]:
    if gain is None:
        return {"speedup": None, "low": None, "high": None}
    high = None if gain.high is None or math.isinf(gain.high) else gain.high
    return {"speedup": gain.estimate, "low": gain.low or None, "high": high}


def _censored(found: Audit) -> dict[str, int]:
    own, claim = found.gain, found.claim
    counts = (own.censored_baseline, own.censored_candidate) if own else (0, 0)
    return dict(zip((claim.baseline, claim.candidate), counts, strict=True))


def _reached(found: Audit) -> dict[str, Any]:
    """Kaplan-Meier by arm, and the restricted means until the horizon, on the claim's axis."""
    times = found.times()
    if not times:
        return {}
    end = horizon(found.logs, found.claim.axis)
    means = {name: mean_until(own, end) for name, own in times.items()}
    base, cand = (means[name] for name in (found.claim.baseline, found.claim.candidate))
    return {
        "horizon": end,
        "curves": {name: kaplan_meier(own) for name, own in times.items()},
        "restricted_means": means,
        "ratio": base / cand if cand else None,
    }


def print_cards(audits: Sequence[Audit]) -> None:
    """One card a claim, and for a family the table of raw and adjusted verdicts; 80 columns wide into a pipe."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    parts = [card(found) for found in audits] + ([_family(audits)] if len(audits) > 1 else [])
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    console.out("\n".join(line.rstrip() for line in captured.get().splitlines()), highlight=False)


def card(found: Audit) -> RenderableType:
    """What was claimed, the verdict and why, the axes, and the notes."""
    claim = found.claim
    colour = COLOURS[found.verdict]
    least = "at least " if claim.kind == "at_least" else ""
    goal = f"{claim.metric} <= {found.target:.5g}" if found.target else f"{claim.metric} <= {claim.target}"
    said = f"{claim.candidate} reaches {goal} with {least}{factor(claim.factor)}x {FEWER[claim.axis]} than {claim.baseline}"
    parts: list[RenderableType] = [
        Text(claim.name, style="bold"),
        Text(f'"{said}"'),
        Text.assemble((found.verdict.upper(), f"bold {colour}"), f"  {'; '.join(map(str, found.reasons))}"),
        Padding(_axes(found), (1, 0)),
        *(Text(line) for line in _facts(found)),
        *(_item(note) for note in notes(found)),
        Text(""),
    ]
    return Group(*parts)


def _axes(found: Audit) -> Table:
    table = Table("", "speed-up", "interval", "", box=None, padding=(0, 2, 0, 0), header_style="dim")
    for axis in AXES:
        gain = (found.gains or {}).get(axis)
        claimed = axis == found.claim.axis
        name = Text(FEWER[axis].removeprefix("fewer ") + " *" * claimed, style="bold" if claimed else "")
        if gain is None:
            table.add_row(name, "-", "", "not compared")
        else:
            value = "-" if gain.estimate is None else f"{factor(gain.estimate)}x"
            table.add_row(name, value, interval(gain.low, gain.high), gain.direction)
    return table


def _facts(found: Audit) -> list[str]:
    """Numbers that belong to the verdict, a line each."""
    own, claim = found.gain, found.claim
    percent = f"{100 * claim.confidence:g} %"
    if own is None:
        return [f"n = {found.n_pairs}, {percent}; claim {claim_hash(claim)}, {found.standing}"]
    together = "" if own.correlation is None else f", their times correlate by {own.correlation:.2f}"
    pairs = f"n = {own.n} pairs{together}" if own.paired else f"n = {own.n} seeds an arm, unpaired (Welch)"
    lost = ", ".join(f"{name} {count}" for name, count in _censored(found).items())
    steep = ", ".join(
        f"{name} {slope:.2f}" for name, slope in (found.slopes or {}).items() if slope is not None
    )
    lines = [f"{pairs}; {percent}; censored: {lost}"]
    if steep:
        lines.append(f"slope at the target (log metric by log step): {steep}")
    if found.detectable is not None:
        lines.append(
            f"these runs can tell a factor of {factor(found.detectable)} from 1 (80 % power); {_more(found)}"
        )
    return [*lines, f"claim {claim_hash(claim)}, {found.standing}"]


def _more(found: Audit) -> str:
    if found.more_pairs == 0:
        return "decided"
    if found.more_pairs is None:
        return "more pairs alone would not decide it"
    return f"{found.more_pairs} more pair{'s' if found.more_pairs > 1 else ''} would decide it"


def notes(found: Audit) -> list[str]:
    """What a reader must know before quoting the verdict."""
    return [
        *_about_shape(found),
        *_about_times(found),
        *_about_budgets(found),
        *_about_sources(found),
        *found.notes,
    ]


def _about_shape(found: Audit) -> list[str]:
    return [*_about_decline(found), *_about_dual(found)]


def _about_decline(found: Audit) -> list[str]:
    """Warns of curves that got worse again: where that changes the answer by more than the interval is wide, where runs count
    as not there although they once were, and where the fit calls a run there that ends above the target."""
    own, first, said = found.gain, found.first, []
    if own is None or first is None or not own.estimate or not first.estimate:
        return said
    lost = _lost(own) - _lost(first)
    apart = abs(math.log(first.estimate / own.estimate))
    closed = own.low and not math.isinf(own.high)
    if lost > 0 or (closed and apart > math.log(own.high / own.low)):
        said.append(
            f"Curves get worse again: by first crossings {_spoken(first)}, by sustained ones {_spoken(own)}; the sustained "
            "ones count."
        )
    if lost > 0:
        said.append(f"{lost} runs passed the target and got worse again: they count as not there.")
    if above := sum(ends_above(log, one, found.target) for log, one in found.crossed()):
        said.append(
            f"{above} runs are above the target again in the last quarter of their evaluations, on average."
        )
    return said


def _about_dual(found: Audit) -> list[str]:
    steps = (found.gains or {}).get("steps")
    if not found.dual or not steps or steps.estimate is None or found.dual.agrees(steps):
        return []
    span = ", ".join(
        f"{factor(gain.estimate)}x at {target:.4g}" for target, gain in found.curve if gain.estimate
    )
    return [
        f"The curves are not shifted copies: read off the metrics at step {found.dual.step:.0f} the speed-up in steps is "
        f"{_spoken(found.dual.gain)}. It depends on the target: {span}."
    ]


def _about_budgets(found: Audit) -> list[str]:
    """Times that a run has but that the common budget of an axis cuts: a slower step makes the same steps longer."""
    gains = found.gains or {}
    if found.claim.axis not in gains:
        return []
    base = min(_lost(gain) for gain in gains.values())
    cut = {axis: _lost(gain) - base for axis, gain in gains.items() if _lost(gain) > base}
    if not cut:
        return []
    said = ", ".join(f"{count} in {FEWER[axis].removeprefix('fewer ')}" for axis, count in cut.items())
    return [f"Times beyond the smallest budget of any run count as bounds there: {said}."]


def _lost(gain: Speedup) -> int:
    return gain.censored_baseline + gain.censored_candidate


def _about_times(found: Audit) -> list[str]:
    said = []
    reached = _reached(found)
    for name, times in found.times().items():
        never, early = (sum(time.censored == side for time in times) for side in ("right", "left"))
        if never:
            share = reached["curves"][name][-1][1]
            said.append(
                f"{never} of {len(times)} runs of {name} did not reach the target within the smallest budget ({share:.0%} "
                "did): the interval is open at that end."
            )
        if early:
            said.append(
                f"{early} of {len(times)} runs of {name} were below the target at their first evaluation."
            )
    if said and reached["ratio"]:
        said.append(f"Restricted mean times up to the common budget: a ratio of {factor(reached['ratio'])}.")
    return said


def _about_sources(found: Audit) -> list[str]:
    claim, logs, said = found.claim, found.logs.all, []
    if claim.step is not None and found.target is not None:
        said.append(f"The target is {claim.baseline}'s median at step {claim.step}: {found.target:.5g}.")
    if logs and not any(log.protocols for log in logs):
        said.append("The logs tell no evaluation protocol: it is taken to be the same for all points.")
    if claim.axis in CLOCK and not any(log.machines for log in logs):
        said.append("The logs tell no hardware: it is taken to be the same for all runs.")
    elif claim.axis not in CLOCK and logs and (reason := hardware(found.logs)):
        said.append(f"Seconds are not compared: {reason.text}.")
    if fields := differing_fields([log.settings for log in logs]):
        said.append(f"The arms are not on an equal footing: {'; '.join(fields)}.")
    return said


def _family(audits: Sequence[Audit]) -> Table:
    table = Table(
        "claim", "raw", "p", "adjusted", "p (Holm)", box=None, padding=(0, 2, 0, 0), header_style="dim"
    )
    for found in audits:
        row = (found.verdict, f"{found.p:.2g}", found.adjusted or "", f"{found.adjusted_p:.2g}")
        table.add_row(Text(found.claim.name), *row)
    return table


def _spoken(gain: Speedup) -> str:
    return f"{factor(gain.estimate)}x {interval(gain.low, gain.high)}".strip()


def _item(note: str) -> Table:
    """Its lines hang behind the dash."""
    item = Table.grid(padding=(0, 1, 0, 0))
    item.add_row("-", Text(note))
    return item
