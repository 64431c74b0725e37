"""Printed numbers about the objectives of a study, each next to that of the same paper's baseline."""

from __future__ import annotations

from dataclasses import dataclass

from reports.gallery.study import GalleryStudy, objective
from reports.literature.compare import measurement, numeric, place, same_test, shown
from reports.literature.database import load_literature
from reports.literature.entries import PublishedNumber
from reports.stats.number_format import factor


@dataclass(frozen=True)
class Printed:
    """A printed comparison of an objective with the baseline."""

    method: str
    text: str
    source: str


def printed_of(study: GalleryStudy) -> list[Printed]:
    """Return the printed comparisons of the study's objectives; empty if it asks for none."""
    wanted = study.about.published
    if wanted is None:
        return []
    rows = study.main.compared("steps")
    bases = {objective(row.baseline) for row in rows}
    found = []
    for method in dict.fromkeys(row.objective for row in rows):
        found += _ratios(method, bases, wanted.dataset)
        if pair := _pair(method, bases, wanted.dataset, wanted.metric):
            ours, theirs = pair
            text = f"{measurement(ours)} {shown(ours)}, {theirs.method} {shown(theirs)}"
            found.append(Printed(method, text, place(ours)))
    return found


def _ratios(method: str, bases: set[str], dataset: str) -> list[Printed]:
    """Return the speed-ups in steps that a source states."""
    literature, found = load_literature(), []
    for ratio in literature.ratios:
        theirs, ours = literature.of(ratio)
        fits = ratio.quantity == "steps" and ratio.dataset == dataset
        if fits and ours.arm == method and theirs.arm in bases:
            text = f"{factor(ratio.value)}× fewer steps than {ratio.baseline}, {ours.network} on {dataset}"
            found.append(Printed(method, text, f"{ours.title}, {ratio.status}"))
    return found


def _pair(
    method: str, bases: set[str], dataset: str, metric: str
) -> tuple[PublishedNumber, PublishedNumber] | None:
    """Return the number of the longest training that has one of the baseline at the same settings."""
    numbers = [
        one
        for one in load_literature().numbers
        if one.dataset == dataset and one.measure == metric and numeric(one) and isinstance(one.steps, int)
    ]
    pairs = [
        (ours, theirs)
        for ours in numbers
        if ours.arm == method
        for theirs in numbers
        if theirs.arm in bases and theirs.paper == ours.paper and same_test(ours, theirs)
    ]
    return max(pairs, key=lambda pair: (float(pair[0].steps), pair[0].network), default=None)
