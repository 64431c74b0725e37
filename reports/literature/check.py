"""Consistency checks of published numbers: each rule is one function, each finding names its sources.

No rule is specific to a paper. A finding is computed from the numbers and from the entries that refer to
them: stated ratios, known spreads and comparisons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Literal, TypeVar

from reports.literature.compare import (
    EDGE,
    amount,
    better,
    count,
    differ,
    guided,
    half,
    measurement,
    mismatch,
    numeric,
    place,
    protocol_text,
    relative,
    same_test,
    shown,
    sources,
)
from reports.literature.crossings import Crossing, crossings, disagree
from reports.literature.entries import KnownSpread, Literature, PublishedNumber, Ratio

T = TypeVar("T")
Severity = Literal["contradiction", "warning", "note", "holds"]
SEVERITIES: tuple[Severity, ...] = ("contradiction", "warning", "note", "holds")
PRINTED = {"table", "text", "abstract", "user_report"}
"""The statuses with reliable digits: neither read off figures nor quoted by third parties."""
CELL = ("arm", "network", "dataset", "measure", "steps")
SPEEDUP, STEPS_TO, OVERTAKES, LOSES = (
    "convergence_speedup",
    "steps_to_",
    "steps_to_overtake",
    "_degradation_over",
)
"""The measures that rules interpret: a factor, a number of steps, the step of a crossing, points lost in an
ablation."""


@dataclass(frozen=True)
class Finding:
    """One sentence about published numbers, with their ids and sources."""

    rule: str
    severity: Severity
    text: str
    ids: tuple[str, ...]
    sources: tuple[str, ...]


def check_literature(literature: Literature) -> list[Finding]:
    """Return all findings, the most severe first, then in the order of the rules."""
    found = [finding for rule in RULES.values() for finding in rule(literature)]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def _finding(
    rule: str, severity: Severity, text: str, numbers: Iterable[PublishedNumber], *more: str
) -> Finding:
    named = list(dict.fromkeys(number.id for number in numbers))
    return Finding(rule, severity, text, tuple(named), sources(numbers, *more))


def arithmetic(literature: Literature) -> Iterator[Finding]:
    """Recompute stated ratios from their two numbers, to the printed number of places."""
    for ratio in literature.ratios:
        above, below = literature.of(ratio)
        a, b = amount(above, ratio.quantity), amount(below, ratio.quantity)
        stated = f"{ratio.value:.{max(ratio.places, 0)}f}"
        if a is None or not b:
            text = f"{stated}x cannot be recomputed: {above.id} or {below.id} gives no {ratio.quantity}"
            yield _finding("arithmetic", "warning", text, (above, below), ratio.source)
            continue
        holds = abs(a / b - ratio.value) <= half(ratio.places)
        text = f"{ratio.method} over {ratio.baseline}: {count(a)} / {count(b)} = {a / b:.4g}, "
        text += f"{'as printed: ' if holds else 'but printed as '}{stated}{_unequal(ratio, above, below)}"
        yield _finding(
            "arithmetic", "holds" if holds else "contradiction", text, (above, below), ratio.source
        )


def _unequal(ratio: Ratio, long: PublishedNumber, short: PublishedNumber) -> str:
    """Return the caveat of a ratio of steps between unequal values: it is only a bound on a speed-up."""
    alike = long.measure == short.measure and not long.measure.startswith(STEPS_TO)
    if ratio.quantity == "value" or not alike or not differ(long, short):
        return ""
    bound = "a lower bound" if better(short, long) else "an upper bound"
    ends = f"{long.measure} {shown(short)} against {shown(long)}"
    return f"; the shorter training ends at {ends}, so {ratio.value:g} is {bound} for equal {long.measure}"


def across_benchmarks(literature: Literature) -> Iterator[Finding]:
    """Find numbers of steps that were not measured.

    They are the rival's steps, divided by a speed-up that is stated for another data set.
    """
    claims = [n for n in literature.numbers if n.measure.startswith(STEPS_TO) and numeric(n)]
    speedups = [n for n in literature.numbers if n.measure == SPEEDUP and numeric(n)]
    for claim in claims:
        for speedup in speedups:
            same_race = (speedup.arm, speedup.rival) == (claim.arm, claim.rival)
            if same_race and speedup.dataset != claim.dataset:
                donor = next((n for n in literature.numbers if _explains(n, speedup, claim)), None)
                if donor:
                    yield _borrowed(literature, claim, speedup, donor)


def _explains(donor: PublishedNumber, speedup: PublishedNumber, claim: PublishedNumber) -> bool:
    here = (donor.arm, donor.dataset, donor.network) == (claim.rival, claim.dataset, claim.network)
    if not here or not isinstance(donor.steps, int) or not speedup.value:
        return False
    return abs(donor.steps / float(speedup.value) - float(claim.value)) <= half(claim.places)


def _borrowed(
    literature: Literature, claim: PublishedNumber, speedup: PublishedNumber, donor: PublishedNumber
) -> Finding:
    against = [*_overtaken_later(literature, claim), *_still_worse(literature, claim)]
    text = (
        f"{count(float(claim.value))} steps of {claim.arm} on {claim.dataset} ({claim.status}) are the "
        f"{count(donor.steps)} of {donor.arm} there divided by {speedup.value:g}, a ratio stated for "
        f"{speedup.dataset}"
    )
    text = "; ".join([text, *(reason for reason, _ in against)])
    numbers = (claim, speedup, donor, *(number for _, others in against for number in others))
    return _finding("across-benchmarks", "contradiction" if against else "warning", text, numbers)


Against = Iterator[tuple[str, tuple[PublishedNumber, ...]]]


def _overtaken_later(literature: Literature, claim: PublishedNumber) -> Against:
    """Yield later crossings of the same two methods on the same data."""
    for n in literature.numbers:
        same = all(getattr(n, f) == getattr(claim, f) for f in ("arm", "rival", "dataset", "network"))
        if same and n.measure.startswith(OVERTAKES) and numeric(n) and float(n.value) > float(claim.value):
            yield (
                f"{place(n)} reports that it overtakes {n.rival} there only at {count(float(n.value))}",
                (n,),
            )


def _still_worse(literature: Literature, claim: PublishedNumber) -> Against:
    """Yield later steps at which the same paper reports a worse value for the method."""
    aim = claim.measure.rpartition("_")[2]
    here = (claim.paper, aim, claim.dataset, claim.network)
    race = [n for n in literature.numbers if (n.paper, n.measure, n.dataset, n.network) == here]
    race = [n for n in race if isinstance(n.steps, int) and n.steps > float(claim.value)]
    ours, theirs = ([n for n in race if n.arm == arm] for arm in (claim.arm, claim.rival))
    worse = [(a, b) for a in ours for b in theirs if same_test(a, b) and better(b, a)]
    if worse:
        listed = ", ".join(f"{shown(a)} against {shown(b)} at {count(a.steps)}" for a, b in worse)
        read = ", read off figures" if any(a.status == "figure_estimate" for a, _ in worse) else ""
        yield f"{claim.title} itself reports worse values later ({aim} {listed}{read})", worse[0]


def targets(literature: Literature) -> Iterator[Finding]:
    """Find stated speed-ups that the figures of the same race give otherwise at other targets."""
    for stated in literature.numbers:
        if stated.measure != SPEEDUP or not numeric(stated):
            continue
        race = [n for n in literature.numbers if (n.dataset, n.network) == (stated.dataset, stated.network)]
        read = [n for n in race if n.status == "figure_estimate" and n.paper == stated.paper and numeric(n)]
        ours = [n for n in read if n.arm == stated.arm]
        for figure in _groups([n for n in read if n.arm == stated.rival], "source", "measure"):
            curve = [n for n in figure if isinstance(n.steps, int)]
            found = crossings(ours, curve)
            if disagree(found, stated):
                yield _read_elsewhere(stated, found)


def _read_elsewhere(stated: PublishedNumber, found: Sequence[Crossing]) -> Finding:
    first = found[0].target
    listed = ", ".join(
        f"{first.measure} {shown(one.target)}: {count(one.target.steps)} / {count(round(one.step, -4))} = "
        f"{one.speedup:.1f}"
        for one in found
    )
    low, high = (pick(one.speedup for one in found) for pick in (min, max))
    text = (
        f"{stated.value:g}x of {stated.arm} over {stated.rival} on {stated.dataset} depends on the target: "
        f"{place(first)}, read off the figure, gives {low:.1f} to {high:.1f} ({listed})"
    )
    return _finding(
        "targets", "warning", text, (stated, *(n for one in found for n in (one.target, *one.found)))
    )


def protocol_differences(literature: Literature) -> Iterator[Finding]:
    """Find numbers compared under different protocols: in a comparison, in one table, or across papers."""
    for comparison in literature.comparisons:
        a, b = literature.of(comparison)
        differs = mismatch(a, b) + ([f"network {a.network} / {b.network}"] if a.network != b.network else [])
        if differs:
            text = f"{_named(a)} is compared with {_named(b)}: they differ in {', '.join(differs)}"
            yield _finding("protocol", "warning", text, (a, b), comparison.source)
    for table in _groups(_printed(literature), "source", "dataset"):
        mismatched = _involved(list(_groups(table, "arm")), _never_alike)
        if mismatched:
            listed = "; ".join(f"{arm[0].method} ({protocol_text(arm[0])})" for arm in mismatched)
            text = f"{place(table[0])} compares methods that share no protocol: {listed}"
            yield _finding("protocol", "note", text, [arm[0] for arm in mismatched])
    for group in _groups(_printed(literature), "arm", "network", "dataset", "steps"):
        members = _involved(
            group, lambda a, b: a.paper != b.paper and a.measure == b.measure and bool(mismatch(a, b))
        )
        if members and isinstance(group[0].steps, int):
            kinds = [kind[0] for kind in _groups(members, "sampler", "guidance", "samples", "paper")]
            values = "; ".join(f"{n.measure} {shown(n)} with {protocol_text(n)} ({place(n)})" for n in kinds)
            text = f"{_shared(group[0])} is printed under incompatible protocols: {values}"
            yield _finding("protocol", "note", text, members)


def _never_alike(ours: Sequence[PublishedNumber], theirs: Sequence[PublishedNumber]) -> bool:
    return all(mismatch(a, b) for a in ours for b in theirs)


def drift(literature: Literature) -> Iterator[Finding]:
    """Find cells that are printed with different values under one protocol, beyond rounding."""
    for group in _groups(_printed(literature), *CELL):
        members = _involved(group, lambda a, b: differ(a, b) and not mismatch(a, b))
        if members and isinstance(group[0].steps, int):
            values = ", ".join(f"{shown(n)} ({place(n)}{': ' + n.note if n.note else ''})" for n in members)
            text = f"{_shared(group[0])} is printed with different values of {group[0].measure}: {values}"
            yield _finding("drift", "warning", text, members)


def margins(literature: Literature) -> Iterator[Finding]:
    """Find differences between single trainings that are smaller than a known spread of equal trainings."""
    for table in _groups(_printed(literature), "source", "dataset", "measure"):
        for with_guidance in (False, True):
            fair = [n for n in table if n.seeds == 1 and numeric(n) and guided(n)[0] is with_guidance]
            known = min(_spreads(literature, fair), key=lambda pair: pair[1], default=None)
            close = [pair for pair in _contests(fair) if known and relative(*pair) < known[1]]
            if known and close:
                yield _unresolved(literature, close, *known)


def _unresolved(
    literature: Literature,
    close: Sequence[tuple[PublishedNumber, PublishedNumber]],
    spread: KnownSpread,
    width: float,
) -> Finding:
    first = close[0][0]
    listed = "; ".join(
        f"{a.method} {shown(a)} against {b.method} {shown(b)}, {100 * relative(a, b):.1f} %" for a, b in close
    )
    known = " to ".join(
        shown(n) for n in sorted(literature.of(spread), key=lambda n: float(n.value))[:: len(spread.of) - 1]
    )
    text = (
        f"{place(first)}: {first.measure} of single trainings is closer than the {100 * width:.1f} % by "
        f"which {spread.what} differ ({known}): {listed}"
    )
    numbers = [n for pair in close for n in pair]
    return _finding("margin", "warning", text, numbers, spread.source)


def _contests(fair: Sequence[PublishedNumber]) -> list[tuple[PublishedNumber, PublishedNumber]]:
    """Return the pairs to compare: each number with its named baseline, and the best two of each cell."""
    found = [
        (a, b) for a, b in permutations(fair, 2) if a.rival == b.arm and a.arm != b.arm and same_test(a, b)
    ]
    for group in _groups(fair, "network", "steps", "sampler", "guidance", "samples"):
        ranked = sorted(group, key=lambda n: float(n.value), reverse=group[0].better == "higher")
        if len(ranked) > 1 and ranked[0].arm != ranked[1].arm and isinstance(ranked[0].steps, int):
            found.append((ranked[0], ranked[1]))
    return list({frozenset((a.id, b.id)): (a, b) for a, b in reversed(found)}.values())[::-1]


def _spreads(literature: Literature, like: Sequence[PublishedNumber]) -> Iterator[tuple[KnownSpread, float]]:
    """Yield the known spreads of this measure and data set, as fractions of their mean.

    The caller uses the smallest, in favour of the claim.
    """
    for spread in literature.spreads if like else ():
        members = [n for n in literature.of(spread) if numeric(n)]
        alike = all(n.dataset == like[0].dataset and guided(n)[0] == guided(like[0])[0] for n in members)
        if alike and len(members) > 1 and like[0].measure in spread.metrics:
            yield spread, max(relative(a, b) for a, b in combinations(members, 2))


def prose(literature: Literature) -> Iterator[Finding]:
    """Check statements `without X it loses over c points` at every step with both values in one source."""
    for claim in literature.numbers:
        if not claim.measure.endswith(LOSES) or not numeric(claim):
            continue
        paper = [
            n for n in literature.numbers if n.paper == claim.paper and claim.measure == n.measure + LOSES
        ]
        ablated, full = ([n for n in paper if n.arm == arm] for arm in (claim.arm, claim.rival))
        pairs = [(a, b) for a in ablated for b in full if a.source == b.source and same_test(a, b)]
        lost = {a.steps: float(a.value) - float(b.value) for a, b in pairs}
        if any(points <= float(claim.value) + EDGE for points in lost.values()):
            listed = ", ".join(f"{points:.2g} at {count(steps)}" for steps, points in lost.items())
            measure, where = pairs[0][0].measure, place(pairs[0][0])
            stated = f"{claim.method} is reported to lose over {claim.value:g} {measure} to {claim.baseline}"
            text = f"{stated}; {where} has {listed}"
            yield _finding("prose", "note", text, (claim, *(n for pair in pairs for n in pair)))


def _printed(literature: Literature) -> list[PublishedNumber]:
    return [number for number in literature.numbers if number.status in PRINTED]


def _groups(numbers: Iterable[PublishedNumber], *fields: str) -> list[list[PublishedNumber]]:
    """Return groups of numbers that agree in all these fields, in the order of their first members."""
    found: dict[tuple[object, ...], list[PublishedNumber]] = {}
    for number in numbers:
        found.setdefault(tuple(getattr(number, field) for field in fields), []).append(number)
    return list(found.values())


def _involved(group: Sequence[T], clash: Callable[[T, T], bool]) -> list[T]:
    """Return the members that clash with at least one other."""
    return [one for one in group if any(clash(one, other) for other in group if other is not one)]


def _named(number: PublishedNumber) -> str:
    return f"{measurement(number)} {shown(number)} ({place(number)})"


def _shared(number: PublishedNumber) -> str:
    """Return the cell by the names that all papers share."""
    return f"{number.arm}, {number.network} on {number.dataset} at {count(number.steps)} steps"


RULES: dict[str, Callable[[Literature], Iterator[Finding]]] = {
    "arithmetic": arithmetic,
    "across-benchmarks": across_benchmarks,
    "targets": targets,
    "protocol": protocol_differences,
    "drift": drift,
    "margin": margins,
    "prose": prose,
}
