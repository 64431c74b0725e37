"""The content of a data set: samples, classes with counts, captions, their sources, files left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

# Any: JSON.
from typing import Any, NamedTuple

import numpy as np

from harness.data.dataset import Capabilities, Dataset, label_of
from harness.data.stored import Stored
from harness.errors import UserError
from metrics.files.listing import Skipped

SHOWN = 6
"""Classes whose names and counts fit the line in the terminal."""


LONG = 1000
"""Characters of a caption above which it is counted as long."""


class Counted(NamedTuple):
    """A number of samples or captions, and the name of the first."""

    number: int
    first: str


@dataclass(frozen=True)
class FoundCaptions:
    """The captions of a data set, and what is unusual about them."""

    captions: int
    source: str
    missing: Counted
    """Samples without caption."""
    empty: Counted
    """Captions without text."""
    long: Counted
    """Captions of more than `LONG` characters."""

    def line(self) -> str:
        """Return one line: number, source, and the missing, empty and long ones."""
        found = (
            (self.missing, "samples have none"),
            (self.empty, "are empty"),
            (self.long, f"have more than {LONG} characters"),
        )
        parts = [f"{one.number} {what} (first: {one.first})" for one, what in found if one.number]
        source = f" ({self.source})" if self.source else ""
        return "; ".join([f"{self.captions} captions{source}", *parts])

    def row(self) -> dict[str, Any]:
        """Return the facts as JSON."""
        unusual = {"missing": self.missing, "empty": self.empty, "long": self.long}
        counts = {name: {"number": one.number, "first": one.first} for name, one in unusual.items()}
        return {"captions": self.captions, "source": self.source, **counts}


@dataclass(frozen=True)
class Found:
    """The content of a data set, as it is shown before a run and stored in its record."""

    samples: int
    classes: tuple[tuple[str, int], ...]
    """Name and number of samples of each class; empty for data without labels."""
    label_source: str
    problem: str = ""
    """Why existing labels cannot be used; empty if they can."""
    skipped: tuple[Skipped, ...] = ()
    files: int | None = None
    """Number of files that were read; None for generated data."""
    shape: tuple[int, ...] | None = None
    """Shape of a sample, or of its first part."""
    stored: Stored = field(default_factory=Stored)
    """Sizes and rates on disk; empty for generated data."""
    captions: FoundCaptions | None = None
    """None if captions are not read."""

    def line(self) -> str:
        """Return one line: samples, classes, label source, sizes and rates, and what was left out."""
        parts = [f"{self.samples} samples, {self._classes()} (label source: {self.label_source})"]
        parts += self.stored.parts()
        parts += [self.problem] if self.problem else []
        parts += [self.captions.line()] if self.captions else []
        parts += [f"skipped {'; '.join(map(str, self.skipped))}"] if self.skipped else []
        return "; ".join(parts)

    def _classes(self) -> str:
        if not self.classes:
            return "no classes"
        number = "1 class" if len(self.classes) == 1 else f"{len(self.classes)} classes"
        if len(self.classes) > SHOWN:
            return number
        return f"{number}: {', '.join(f'{name} {count}' for name, count in self.classes)}"

    def row(self) -> dict[str, Any]:
        """Return the content as JSON."""
        row: dict[str, Any] = {
            "files": self.files,
            "samples": self.samples,
            "shape": self.shape,
            "classes": dict(self.classes),
            "label_source": self.label_source,
        }
        row |= self.stored.row()
        if self.problem:
            row["label_problem"] = self.problem
        if self.captions:
            row["captions"] = self.captions.row()
        row["skipped"] = [{"reason": s.reason, "files": s.files, "first": s.example} for s in self.skipped]
        return row


def found_in(dataset: Dataset) -> Found:
    """Return the content of an open data set."""
    has = Capabilities(dataset)
    source = has.label_source or "the data set"
    classes = _counts(dataset) if dataset.classes > 1 or has.class_names else ()
    shape = tuple(dataset.shape)
    return Found(
        len(dataset),
        classes,
        source,
        has.label_problem,
        has.skipped,
        has.files,
        shape,
        has.stored or Stored(),
        captions_in(dataset),
    )


def captions_in(dataset: Dataset) -> FoundCaptions | None:
    """Return the facts about the captions of a data set; None for data without captions."""
    has = Capabilities(dataset)
    if has.captions is None:
        return _states_in(has)
    name = has.sample_name or (lambda index: f"sample {index}")
    captions, firsts, counts = 0, {}, Counter()
    for index in range(len(dataset)):
        texts = has.captions(index)
        captions += len(texts)
        found = {"missing": not texts, "empty": texts.count(""), "long": sum(len(t) > LONG for t in texts)}
        for kind, number in found.items():
            if number:
                counts[kind] += number
                firsts.setdefault(kind, name(index))
    missing, empty, long = (
        Counted(counts[kind], firsts.get(kind, "")) for kind in ("missing", "empty", "long")
    )
    return FoundCaptions(captions, has.caption_source, missing, empty, long)


def _states_in(has: Capabilities) -> FoundCaptions | None:
    """Return the facts about captions whose features are stored, and not their texts."""
    if (states := has.caption_states) is None:
        return None
    none, missing = Counted(0, ""), np.flatnonzero(states.counts == 0)
    first = f"sample {missing[0]}" if len(missing) else ""
    return FoundCaptions(int(states.counts.sum()), states.source, Counted(len(missing), first), none, none)


def check_labels(dataset: Dataset) -> None:
    """Raise `UserError` if a data set has labels that cannot be used, for training on it."""
    if problem := Capabilities(dataset).label_problem:
        raise UserError(
            f"training needs labels, but {problem}; choose others with data.label_key, or train without: "
            "--set data.label_key=none"
        )


def class_counts(names: tuple[str, ...], classes: int, labels: np.ndarray) -> tuple[tuple[str, int], ...]:
    """Return name and number of samples of each class; classes without names are numbered."""
    names = names or tuple(map(str, range(classes)))
    return tuple(zip(names, np.bincount(labels, minlength=len(names)).tolist(), strict=True))


def _counts(dataset: Dataset) -> tuple[tuple[str, int], ...]:
    has = Capabilities(dataset)
    labels = np.fromiter((label_of(dataset, i) for i in range(len(dataset))), np.int64, len(dataset))
    return class_counts(has.class_names, dataset.classes, labels)
