"""The race in words: who reached the target first, by how much, how sure that is, and the caveats."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from reports.race.comparability import values_differ
from reports.race.metric_notes import about_metric
from reports.race.race import Race
from reports.stats.curves import equal_flops
from reports.stats.number_format import factor, interval
from reports.stats.speedup import Speedup, Time, closed_ends, speedup

FEWER = {
    "steps": "fewer steps",
    "images": "fewer images",
    "flops": "fewer FLOPs",
    "seconds": "fewer training seconds",
    "gpu_seconds": "fewer GPU-seconds",
}
MIN_PAIRS = 3
MOST_NAMED = 3
"""Candidates that a sentence names one by one."""


def goal(race: Race) -> str:
    """Return the target in words, for example `fd:local ≤ 12`."""
    if race.target is None:
        return f"the {race.metric} target of its cell"
    return f"{race.metric} ≤ {race.target:.6g}"


def how_found(race: Race) -> str:
    """Return how the target was found; empty for a number."""
    if race.rule is None:
        return "chosen after the fact"
    return race.rule.described(race.baseline_objective)


def sentence(race: Race, axis: str) -> str:
    """Return the verdict on one axis, in one or two sentences."""
    if not any(run.done for run in race.runs):
        return "No run has finished yet: there are curves, but no times to compare."
    if why := values_differ(race.runs):
        return f"Inconclusive: {why}."
    if axis not in race.leaders:
        return f"No run reached {goal(race)}."
    if len(race.arms) == 1:
        return f"{race.baseline} reached {goal(race)}; with one arm there is nothing to compare."
    if not any(key[0] == axis for key in race.speedups):
        return f"{race.leaders[axis]} reached {goal(race)}; no other arm has a finished run to compare with."
    leads = [lead for (on, _), lead in race.leads.items() if on == axis]
    if leads and all(lead.estimate is None for lead in leads):
        return f"It is unknown who reached {goal(race)} first: every pair of times is only bounded."
    return _winner(race, axis) + _open_order(race, axis)


def _winner(race: Race, axis: str) -> str:
    leader, gains = race.leaders[axis], {c: g for (on, c), g in race.speedups.items() if on == axis}
    resolved = all(lead.direction == "faster" for key, lead in race.leads.items() if key[0] == axis)
    opening = f"{leader} reached {goal(race)} {'first' if resolved else 'first on average'}"
    if leader == race.baseline:
        unit = FEWER[axis].removeprefix("fewer ")
        return f"{opening}. Speed-up over it in {unit}: {_others(gains)}{_count(gains.values())}."
    gain = gains.pop(leader)
    if gain.estimate is None:
        return f"{opening}; {race.baseline} has no time to compare with."
    ends = f" {interval(gain.low, gain.high)}" if gain.low is not None else ""
    doubt = ", unresolved" if gain.direction == "unresolved" else ""
    lead = f"{factor(gain.estimate)}x {FEWER[axis]} than {race.baseline}{ends}{doubt}{_count([gain])}"
    return f"{opening}: {lead}{'; ' + _others(gains) if gains else ''}."


def _others(gains: Mapping[str, Speedup]) -> str:
    """Return the largest of these speed-ups in words, the fastest first."""
    labels = sorted(gains, key=lambda label: -(gains[label].estimate or 0))
    more = f"; {len(labels) - MOST_NAMED} more in the table" if len(labels) > MOST_NAMED else ""
    return "; ".join(f"{label} {_short(gains[label])}" for label in labels[:MOST_NAMED]) + more


def _open_order(race: Race, axis: str) -> str:
    """Name the arms that the leader is not shown to beat, except the baseline."""
    if race.leaders[axis] == race.baseline:
        return ""
    leads = {label: lead for (on, label), lead in race.leads.items() if on == axis and label != race.baseline}
    unresolved = [
        f"{label} ({_short(lead, direction=False)})"
        for label, lead in leads.items()
        if lead.direction != "faster"
    ]
    if len(unresolved) > MOST_NAMED:
        return f" Its lead over {len(unresolved)} of {len(leads)} other candidates is unresolved."
    return f" Its lead over {' and '.join(unresolved)} is unresolved." if unresolved else ""


def _short(gain: Speedup, *, direction: bool = True) -> str:
    if gain.estimate is None:
        return "undefined: every pair of times is only bounded"
    ends = f" {interval(gain.low, gain.high)}" if gain.low is not None else " without an interval"
    return f"{factor(gain.estimate)}x{ends}" + (f", {gain.direction}" if direction else "")


def _count(gains: Iterable[Speedup]) -> str:
    """Return `(95 %, n = 3 pairs)`, with the smallest n of all."""
    gains = list(gains)
    n = min(gain.n for gain in gains)
    what = ("pair" if all(gain.paired for gain in gains) else "run") + ("" if n == 1 else "s")
    return f" (n = {n} {what}: no interval)" if n < 2 else f" (95 %, n = {n} {what})"


def caveats_of(race: Race) -> list[str]:
    """Return what a reader must know before quoting a number, most important first."""
    caveats = [
        *_about_target(race),
        *about_metric(race),
        *_about_runs(race),
        *_about_pairs(race),
        *_about_budgets(race),
        *_about_shape(race),
        *race.axis_notes,
        *race.notes,
    ]
    aligned: dict[str, list[str]] = {}
    names = race.labels or {}
    for arm in race.arms:
        if arm.encoder and names.get(arm.method, arm.method) not in aligned.setdefault(arm.encoder, []):
            aligned[arm.encoder].append(names.get(arm.method, arm.method))
    for encoder, methods in aligned.items():
        verb = "aligns" if len(methods) == 1 else "align"
        caveats.append(f"{', '.join(methods)} {verb} to {encoder}: {_encoder(encoder)}.")
    return caveats


def _about_target(race: Race) -> list[str]:
    if race.target_given or not any(value is not None for value in (race.targets or {}).values()):
        return []
    if race.target is None:
        return [
            "No target was given: each cell has its own, chosen after the fact, the lowest value that every "
            "finished run of the cell reaches. A target named before the race is stronger evidence."
        ]
    return [
        f"No target was given: {goal(race)} was chosen after the fact, as the lowest value that every "
        "finished run reaches. A target named before the race is stronger evidence."
    ]


def _about_runs(race: Race) -> list[str]:
    states = [run.record.status for run in race.runs]
    counts = [f"{states.count(kind)} {kind}" for kind in sorted(set(states) - {"done"})]
    counts += [f"{len(race.missing)} missing"] if race.missing else []
    caveats = []
    if counts:
        caveats.append(
            f"{', '.join(counts)} of {len(states) + len(race.missing)} runs: see Provenance.{_failed(race)}"
        )
    unmeasured = sum(run.record.status == "done" and not run.evaluated for run in race.runs)
    if unmeasured:
        one = unmeasured == 1
        caveats.append(
            f"{unmeasured} finished run{'' if one else 's'} {'was' if one else 'were'} not evaluated by "
            f"{race.metric} and {'is' if one else 'are'} excluded from all numbers."
        )
    caveats += _about_early_ends(race)
    if race.unplanned:
        ids = ", ".join(record.id for record in race.unplanned)
        caveats.append(f"Excluded because they are not in the plan: {ids}.")
    return caveats


def _about_early_ends(race: Race) -> list[str]:
    """Report runs that ended early, and what cannot be asked of them."""
    ends = [run.record.early_end for run in race.runs if run.record.early_end is not None]
    if not ends:
        return []
    saved = sum(1 - end.step / end.steps for end in ends) / len(race.runs)
    rules = " or ".join(dict.fromkeys(end.reason for end in ends))
    return [
        f"{len(ends)} of {len(race.runs)} runs ended early, after {rules}: {saved:.0%} of all steps were not "
        f"trained. They count as having reached the target, and their budget is that of all "
        "steps. They have no final value, and their times to lower targets are bounds."
    ]


def _failed(race: Race) -> str:
    """Return how failed runs and runs without an end count."""
    censored = sum(run.counts and not run.done for run in race.runs)
    excluded = sum(not run.counts for run in race.runs) + len(race.missing)
    text = ""
    if censored:
        runs = "run is" if censored == 1 else "runs are"
        text += f" {censored} failed {runs} treated as censored after the last evaluation."
    if excluded:
        text += (
            f" {excluded} {'is' if excluded == 1 else 'are'} excluded from all numbers, so an arm that often "
            "ends early may look better than it is."
        )
    return text


def _about_pairs(race: Race) -> list[str]:
    gains = {label: gain for (axis, label), gain in race.speedups.items() if axis == "steps"}
    few = {label: gain.n for label, gain in gains.items() if gain.n < MIN_PAIRS}
    caveats = []
    if few:
        names = "" if len(few) == len(gains) else f" for {', '.join(few)}"
        n = min(few.values())
        caveats.append(f"n = {n}{names} is too small: use at least {MIN_PAIRS} seeds, preferably 5.")
    for label, gain in gains.items():
        if not gain.paired:
            caveats.append(
                f"{label} and {race.cell_of(label).baseline} share too few seeds for pairing: the interval "
                "is Welch's."
            )
    return caveats + _about_bounds(race)


def _about_bounds(race: Race) -> list[str]:
    """Report arms whose times are bounds: runs that never reached the target, or had when first evaluated."""
    caveats = []
    bounded: dict[tuple[str, str], list[str]] = {}
    for label in (arm.label for arm in race.arms):
        time = race.times.get(("steps", label))
        if time is not None and time.right:
            bounded.setdefault((f"{time.right} of {time.n} runs", _lost(race, label)), []).append(label)
    for (runs, lost), labels in bounded.items():
        each = " each" if len(labels) > 1 else ""
        caveats.append(
            f"{runs}{each} of {', '.join(labels)} never reached {goal(race)}{lost}: their times are bounds, "
            "and the interval is open at that end."
        )
    for label in (arm.label for arm in race.arms):
        time = race.times.get(("steps", label))
        if time is not None and time.left:
            caveats.append(
                f"{time.left} of {time.n} runs of {label} had already reached {goal(race)} at their "
                "first evaluation: evaluate earlier, or choose a lower target."
            )
    return caveats


def _about_budgets(race: Race) -> list[str]:
    """Report times cut at the smallest budget. Runs of equal steps differ in budget on the other axes."""
    caveats = []
    for axis in race.horizons:
        times = [(run.time(axis), race.horizon(axis, run.arm)) for run in race.runs if run.crosses]
        late = sum(time.censored is None and time.value > horizon for time, horizon in times)
        if late:
            caveats.append(
                f"In {FEWER[axis].removeprefix('fewer ')}, {late} of {len(times)} times to target exceed the "
                f"smallest budget of any run{_of_cell(race)} and count as bounds there: longer runs or a "
                "higher target would resolve more."
            )
    return [*_about_equal_flops(race), *caveats]


def _about_equal_flops(race: Race) -> list[str]:
    """Return the sentence about each cell whose runs had equal FLOPs instead of equal steps."""
    sentences = []
    for cell in race.cells:
        found = equal_flops(run.costs for run in race.runs if run.arm in cell.arms and run.done)
        if found:
            sentences.append(found if len(race.cells) == 1 else f"{cell.label}: {found}")
    return sentences


def _of_cell(race: Race) -> str:
    return " in their cell" if len(race.cells) > 1 else ""


def _lost(race: Race, label: str) -> str:
    """Return how many runs of an arm passed the target and got worse again; empty if none did."""
    runs = [run for run in race.of(label) if run.counts and run.crossing.censored == "right"]
    lost = sum(run.first_crossing.censored != "right" for run in runs)
    return f" for good ({lost} passed it and got worse again)" if lost else ""


def _about_shape(race: Race) -> list[str]:
    """Warn if curves that got worse again change the answer by more than the width of the interval."""
    caveats = []
    for label in (label for axis, label in race.speedups if axis == "steps"):
        sustained = race.speedups["steps", label]
        first = _first(race, label)
        if sustained.estimate is None or first is None or first.estimate is None:
            continue
        ends = closed_ends(sustained)
        width = math.log(ends[1] / ends[0]) if ends else math.inf
        if abs(math.log(first.estimate / sustained.estimate)) > width:
            caveats.append(
                f"{label} against {race.cell_of(label).baseline}: curves get worse again. The speed-up is "
                f"{_short(first, direction=False)} by first crossings and "
                f"{_short(sustained, direction=False)} by sustained crossings; the latter count."
            )
    return caveats


def _first(race: Race, label: str) -> Speedup | None:
    """Return an arm's speed-up by first crossings, in steps; None without runs."""
    base, candidate = (
        {
            run.seed: Time(run.first_crossing.step, run.first_crossing.censored)
            for run in race.of(name)
            if run.counts
        }
        for name in (race.cell_of(label).baseline, label)
        if name is not None
    )
    return speedup(base, candidate, race.horizon("steps", label)) if base and candidate else None


def _encoder(name: str) -> str:
    """Return what kind of weights an encoder has, by the family in its name."""
    family = name.partition(":")[0]
    return {
        "local": "a small encoder trained locally on the training split, not the published one",
        "random": "a control with random weights",
        "cached": "cached features",
    }.get(family, "published weights")
