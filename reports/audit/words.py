"""The texts of an audit, for the terminal and for a page: claim, reasons, axes, facts and notes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from reports.audit.audit import Audit
from reports.audit.curve_shape import ends_above, horizon
from reports.audit.inputs.claim import Claim, claim_hash
from reports.audit.preconditions import clock_problem, differing_settings
from reports.race.verdict import FEWER
from reports.stats.curves import AXES, CLOCK_AXES, equal_flops
from reports.stats.mlperf import RULE
from reports.stats.number_format import factor, interval, quantity
from reports.stats.speedup import MOST, Speedup, closed_ends
from reports.stats.survival import kaplan_meier, mean_until


class AxisLine(NamedTuple):
    """The speed-up on one axis, as text."""

    name: str
    claimed: bool
    """True if the claim is on this axis."""
    speedup: str
    interval: str
    direction: str


def claimed(found: Audit) -> str:
    """Return the claim as a sentence."""
    claim = found.claim
    target = claim.target if found.target is None else f"{found.target:.5g}"
    return (
        f"{found.shown(claim.candidate)} reaches {claim.metric} <= {target} with {demanded(claim)} "
        f"{FEWER[claim.axis]} than {found.shown(claim.baseline)}{allowance(claim)}"
    )


def demanded(claim: Claim) -> str:
    """Return the claimed factor, for example `at least 1.50x`."""
    return f"{'at least ' if claim.kind == 'at_least' else ''}{factor(claim.factor)}x"


def allowance(claim: Claim) -> str:
    """Return the tolerance as a suffix, for example `, allowing 10 %`; empty without one."""
    return f", allowing {100 * claim.tolerance:g} %" if claim.tolerance else ""


def because(found: Audit) -> str:
    """Return the reasons of the verdict, after the claimed factor if the claim sets a tolerance."""
    claim, reasons = found.claim, "; ".join(map(str, found.reasons))
    return f"{demanded(claim)}{allowance(claim)}; {reasons}" if claim.tolerance else reasons


def axis_lines(found: Audit) -> list[AxisLine]:
    """Return a line for each of the five axes; its direction is `not compared` if it has no speed-up."""
    return [_axis_line(found, axis) for axis in AXES]


def facts(found: Audit) -> list[str]:
    """Return the numbers that belong to the verdict, one line each."""
    own, claim = found.gain, found.claim
    percent = f"{100 * claim.confidence:g} %"
    if own is None:
        return [f"n = {found.n_pairs}, {percent}; claim {claim_hash(claim)}, {found.standing}"]
    together = "" if own.correlation is None else f", correlation of their times {own.correlation:.2f}"
    pairs = f"n = {own.n} pairs{together}" if own.paired else f"n = {own.n} seeds per arm, unpaired (Welch)"
    lost = ", ".join(f"{found.shown(name)} {count}" for name, count in censored(found).items())
    steep = ", ".join(
        f"{found.shown(name)} {slope:.2f}"
        for name, slope in (found.slopes or {}).items()
        if slope is not None
    )
    lines = [f"{pairs}; {percent}; censored: {lost}"]
    if steep:
        lines.append(f"slope at the target (log metric by log step): {steep}")
    if found.detectable is not None:
        lines.append(
            f"these runs can distinguish a factor of {factor(found.detectable)} from 1 (80 % power); "
            f"{_more(found)}"
        )
    return [
        *lines,
        *_about_mlperf(found),
        *_about_looks(found),
        f"claim {claim_hash(claim)}, {found.standing}",
    ]


def notes(found: Audit) -> list[str]:
    """Return the caveats that a reader must know before quoting the verdict."""
    return [
        *_about_early_ends(found),
        *_about_shape(found),
        *_about_times(found),
        *_about_budgets(found),
        *_about_sources(found),
        *found.notes,
    ]


def censored(found: Audit) -> dict[str, int]:
    """Return the number of censored runs by arm, on the claim's axis."""
    own, claim = found.gain, found.claim
    counts = (own.censored_baseline, own.censored_candidate) if own else (0, 0)
    return dict(zip((claim.baseline, claim.candidate), counts, strict=True))


def arrival_summary(found: Audit) -> dict[str, Any]:
    """Return Kaplan-Meier curves and restricted mean times by arm, on the claim's axis."""
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


def mlperf_summary(found: Audit) -> dict[str, Any]:
    """Return MLPerf's aggregate of both arms, and its ratio; None for an invalid one, with the reason."""
    own = found.mlperf()
    if not own:
        return {}
    values = {name: one.value for name, one in own.items()}
    base, cand = values[found.claim.baseline], values[found.claim.candidate]
    return {
        "rule": RULE,
        "times": values,
        "n": {name: one.n for name, one in own.items()},
        "invalid": {name: one.why for name, one in own.items() if one.why},
        "ratio": base / cand if base and cand else None,
    }


def _about_mlperf(found: Audit) -> list[str]:
    summary, axis = mlperf_summary(found), found.claim.axis
    if not summary:
        return []
    own = found.mlperf()
    shown = {
        name: f"{'invalid' if one.value is None else quantity(axis, one.value)} "
        f"(n = {one.n}{f'; {one.why}' if one.why else ''})"
        for name, one in own.items()
    }
    texts = [f"{found.shown(name)} {text}" for name, text in shown.items()]
    ratio = f"; ratio {factor(summary['ratio'])}" if summary["ratio"] else ""
    return [
        f"MLPerf's aggregate ({RULE}), in {FEWER[axis].removeprefix('fewer ')}: {', '.join(texts)}{ratio}"
    ]


def _about_looks(found: Audit) -> list[str]:
    """Return which look this is, what it rests on, and what the next one needs."""
    rule = found.claim.sequential
    if rule is None or not found.looks:
        return []
    last, planned = found.looks[-1], rule.all_looks
    number = planned.index(last.n) + 1
    looks = "any number of looks" if rule.kind == "anytime" else f"{len(planned)} looks"
    lines = [
        f"look {number} of {len(planned)}, at {last.n} of {rule.max_pairs} pairs: the interval uses "
        f"{last.critical:.3g} standard errors, which allows for {looks}"
    ]
    if found.verdict != "inconclusive":
        if spared := rule.max_pairs - last.n:
            lines.append(f"{2 * spared} of {2 * rule.max_pairs} planned runs of its arms were not needed")
        lines.append("the estimate at a stop is biased outward on average; quote it with its interval")
        return lines
    if number < len(planned):
        lines.append(_next_look(found, planned[number]))
    if found.prospects:
        chances = ", ".join(f"{chance:.0%} by {n} pairs" for n, chance in found.prospects.items())
        lines.append(f"chance of a decision, if the pairs so far predict the others: {chances}")
    return lines


def _next_look(found: Audit, n: int) -> str:
    """Return what the next look needs for a support, at the spread so far."""
    claim, gain = found.claim, found.looks[-1].gain
    rule = claim.sequential
    assert rule is not None
    if gain is None or not gain.error:
        return f"the next look is at {n} pairs"
    half = rule.critical(n, found.alpha or 1 - claim.confidence) * gain.error * math.sqrt(gain.n / n)
    if half > MOST or claim.low * math.exp(half) > claim.high * math.exp(-half):
        return f"the next look, at {n} pairs, supports no factor at this spread"
    end = "" if math.isinf(claim.high) else f" to {factor(claim.high * math.exp(-half))}x"
    return (
        f"the next look, at {n} pairs, supports the claim from an estimate of "
        f"{factor(claim.low * math.exp(half))}x{end} on, at the spread so far"
    )


def _axis_line(found: Audit, axis: str) -> AxisLine:
    gain, name = (found.gains or {}).get(axis), FEWER[axis].removeprefix("fewer ")
    on = axis == found.claim.axis
    if gain is None:
        return AxisLine(name, on, "-", "", "not compared")
    value = "-" if gain.estimate is None else f"{factor(gain.estimate)}x"
    return AxisLine(name, on, value, interval(gain.low, gain.high), gain.direction)


def _more(found: Audit) -> str:
    if found.more_pairs == 0:
        return "decided"
    if found.more_pairs is None:
        return "more pairs alone would not decide it"
    return f"{found.more_pairs} more pair{'s' if found.more_pairs > 1 else ''} would decide it"


def _about_early_ends(found: Audit) -> list[str]:
    rule, runs = found.claim.end_rule, found.logs.all
    if rule is None or not runs:
        return []
    cut, ended = sum(run.cut for run in runs), sum(run.cut and run.early is not None for run in runs)
    return [
        f"Runs are judged up to {rule}, as the claim registers: {cut} of {len(runs)} runs got there, of "
        f"which {ended} ended; the others count with all their steps."
    ]


def _about_shape(found: Audit) -> list[str]:
    return [*_about_decline(found), *_about_dual(found)]


def _about_decline(found: Audit) -> list[str]:
    """Return notes about curves that get worse again.

    There is a note if the speed-up by first crossings differs by more than the width of the interval, if runs
    that reached the target count as not reaching it, and if a run counts as reaching it but ends above it.
    """
    own, first, texts = found.gain, found.first, []
    if own is None or first is None or not own.estimate or not first.estimate:
        return texts
    lost = _lost(own) - _lost(first)
    change = abs(math.log(first.estimate / own.estimate))
    ends = closed_ends(own)
    if lost > 0 or (ends and change > math.log(ends[1] / ends[0])):
        texts.append(
            f"Curves get worse again: the speed-up is {_short(first)} by first crossings and "
            f"{_short(own)} by sustained crossings; the latter count."
        )
    if lost > 0:
        texts.append(f"{lost} runs passed the target and got worse again; they count as not reaching it.")
    target = found.target
    if target is not None and (above := sum(ends_above(run, one, target) for run, one in found.crossed())):
        texts.append(
            f"{above} runs are above the target again, on average over the last quarter of their evaluations."
        )
    return texts


def _about_dual(found: Audit) -> list[str]:
    steps = (found.gains or {}).get("steps")
    if not found.dual or not steps or steps.estimate is None or found.dual.agrees(steps):
        return []
    span = ", ".join(
        f"{factor(gain.estimate)}x at {target:.4g}" for target, gain in found.curve if gain.estimate
    )
    return [
        f"The curves are not shifted copies: from the metrics at step {found.dual.step:.0f} the speed-up in "
        f"steps is {_short(found.dual.gain)}. It depends on the target: {span}."
    ]


def _about_budgets(found: Audit) -> list[str]:
    """Return notes about runs of equal FLOPs, and about times beyond the common budget of an axis.

    A run with slow steps may reach the target within the common steps, but not within the common seconds.
    """
    gains, equal = found.gains or {}, equal_flops(log.costs for log in found.logs.finished.all)
    about = [equal] if equal else []
    if found.claim.axis not in gains:
        return about
    base = min(_lost(gain) for gain in gains.values())
    cut = {axis: _lost(gain) - base for axis, gain in gains.items() if _lost(gain) > base}
    if not cut:
        return about
    counts = ", ".join(f"{count} in {FEWER[axis].removeprefix('fewer ')}" for axis, count in cut.items())
    return [*about, f"Times beyond the smallest budget of any run count as bounds: {counts}."]


def _lost(gain: Speedup) -> int:
    return gain.censored_baseline + gain.censored_candidate


def _about_times(found: Audit) -> list[str]:
    texts = []
    recorded = arrival_summary(found)
    for name, times in found.times().items():
        never, early = (sum(time.censored == side for time in times) for side in ("right", "left"))
        if never:
            share = recorded["curves"][name][-1][1]
            texts.append(
                f"{never} of {len(times)} runs of {found.shown(name)} did not reach the target within the "
                f"smallest budget ({share:.0%} did): the interval is open at that end."
            )
        if early:
            texts.append(
                f"{early} of {len(times)} runs of {found.shown(name)} were already below the target at their "
                "first evaluation."
            )
    if texts and recorded["ratio"]:
        texts.append(f"Ratio of restricted mean times up to the common budget: {factor(recorded['ratio'])}.")
    return texts


def _about_sources(found: Audit) -> list[str]:
    claim, logs, texts = found.claim, found.logs.all, []
    if claim.step is not None and found.target is not None:
        texts.append(
            f"The target is {found.shown(claim.baseline)}'s median at step {claim.step}: {found.target:.5g}."
        )
    if logs and not any(log.protocols for log in logs):
        texts.append("The logs record no evaluation protocol: it is assumed to be the same for all points.")
    if claim.axis in CLOCK_AXES and not any(log.machines for log in logs):
        texts.append("The logs record no hardware: it is assumed to be the same for all runs.")
    elif claim.axis not in CLOCK_AXES and logs and (why := clock_problem(found.logs)):
        texts.append(f"Seconds are not compared: {why}.")
    if fields := differing_settings([log.settings for log in logs]):
        texts.append(f"The arms are not on an equal footing: {'; '.join(fields)}.")
    return texts


def _short(gain: Speedup) -> str:
    return f"{factor(gain.factor)}x {interval(gain.low, gain.high)}".strip()
