"""Comparability of published numbers, and their wording in sentences."""

from __future__ import annotations

import re
from collections.abc import Iterable

from reports.literature.entries import UNSTATED, PublishedNumber

EDGE = 1e-9
"""Slack for binary fractions, as a share of the last printed digit: 0.05 is not above 0.05."""
SILENT = {UNSTATED, "n/a"}
UNGUIDED = (False, None, None)


def guided(number: PublishedNumber) -> tuple[bool | None, float | None, bool | None]:
    """Return guidance as (used or not, scale, limited to an interval or not).

    A value is None if the source does not state it. A source that states a scale but no interval has none.
    """
    words = number.guidance
    if words in SILENT:
        return None, None, None
    if words == "none":
        return UNGUIDED
    scale = re.search(r"CFG (\d+(?:\.\d+)?)", words)
    interval = "interval" in words
    return True, float(scale[1]) if scale else None, True if interval else (False if scale else None)


def mismatch(a: PublishedNumber, b: PublishedNumber) -> list[str]:
    """Return the parts of the protocol in which two numbers certainly differ, as text.

    A part that a source does not state matches anything, except class-balanced labels: papers that draw them
    always state it.
    """
    found = []
    if a.sampler != b.sampler and not {a.sampler, b.sampler} & SILENT:
        found.append(f"sampler {a.sampler} / {b.sampler}")
    if any(x != y for x, y in zip(guided(a), guided(b), strict=True) if x is not None and y is not None):
        found.append(f"guidance {a.guidance} / {b.guidance}")
    if a.samples and b.samples and a.samples != b.samples:
        found.append(f"samples {a.samples:,} / {b.samples:,}")
    if a.labels != b.labels and ((a.labels and b.labels) or "balanced" in (a.labels, b.labels)):
        found.append(f"labels {a.labels or UNSTATED} / {b.labels or UNSTATED}")
    return found


def same_test(a: PublishedNumber, b: PublishedNumber) -> bool:
    """Return whether two numbers differ in their method only: same network, data, measure, step, protocol.

    Both must be numeric.
    """
    cell = ("network", "dataset", "measure", "steps")
    same = all(getattr(a, field) == getattr(b, field) for field in cell)
    return same and numeric(a) and numeric(b) and not mismatch(a, b)


def numeric(number: PublishedNumber) -> bool:
    return isinstance(number.value, float)


def better(a: PublishedNumber, b: PublishedNumber) -> bool:
    """Return whether a is better than b, two values of one measure."""
    if not (isinstance(a.value, float) and isinstance(b.value, float)):
        return False
    x, y = a.value, b.value
    return x > y if a.better == "higher" else x < y


def half(places: int) -> float:
    """Return the largest error of rounding to this number of places."""
    return (0.5 + EDGE) * 10.0**-places


def differ(a: PublishedNumber, b: PublishedNumber) -> bool:
    """Return whether two printed values differ by more than the rounding of the coarser one."""
    if not (numeric(a) and numeric(b)):
        return a.value != b.value
    return abs(float(a.value) - float(b.value)) > half(min(a.places, b.places))


def relative(a: PublishedNumber, b: PublishedNumber) -> float:
    """Return the difference of two values as a fraction of their mean."""
    x, y = float(a.value), float(b.value)
    return 2 * abs(x - y) / ((abs(x) + abs(y)) or 1.0)


def amount(number: PublishedNumber, quantity: str) -> float | None:
    """Return the value or the steps; None if the source gives text.

    A value that is itself a number of steps is returned for both.
    """
    raw = number.value if quantity == "value" or number.measure.startswith("steps_to_") else number.steps
    return None if isinstance(raw, str) else float(raw)


def count(steps: float | int | str | None) -> str:
    """Return steps in the usual short form; smaller numbers unchanged.

    >>> count(7e6), count(143000), count(0.115)
    ('7M', '143k', '0.115')
    """
    if steps is None or isinstance(steps, str):
        return str(steps)
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if steps >= unit:
            return f"{steps / unit:g}{letter}"
    return f"{steps:g}"


def shown(number: PublishedNumber) -> str:
    """Return the value with its printed number of places."""
    return f"{number.value:.{max(number.places, 0)}f}" if numeric(number) else str(number.value)


def place(number: PublishedNumber) -> str:
    """Return the paper and the place in it, for example `REPA Table 7`."""
    if not number.source.startswith("http"):
        return number.source
    address, _, where = number.source.partition(" ")
    tail = re.sub(r"^https?://(arxiv\.org/abs/\S+|github\.com/)?", "", address)
    return f"{number.title} {where or tail}".strip()


def measurement(number: PublishedNumber) -> str:
    """Return what was measured: method, network, data, steps, measure."""
    steps = f" at {count(number.steps)} steps" if isinstance(number.steps, int) else ""
    return f"{number.method}, {number.network} on {number.dataset}{steps}, {number.measure}"


def protocol_text(number: PublishedNumber) -> str:
    labels = f"{number.labels} labels" if number.labels else ""
    guidance = "no guidance" if number.guidance == "none" else number.guidance
    samples = f"{number.samples:,} samples" if number.samples else ""
    return ", ".join(
        part for part in (number.sampler, guidance, samples, labels) if part and part not in SILENT
    )


def sources(numbers: Iterable[PublishedNumber], *more: str) -> tuple[str, ...]:
    """Return the sources of these numbers, each once."""
    return tuple(dict.fromkeys([*(number.source for number in numbers), *(text for text in more if text)]))
