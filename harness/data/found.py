"""The content of a data set: samples, classes with counts, the source of the labels, files left out."""

from __future__ import annotations

from dataclasses import dataclass, field

# Any: JSON.
from typing import Any

import numpy as np

from harness.data.dataset import Capabilities, Dataset, label_of
from harness.data.stored import Stored
from harness.errors import UserError
from metrics.files.listing import Skipped

SHOWN = 6
"""Classes whose names and counts fit the line in the terminal."""


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

    def line(self) -> str:
        """Return one line: samples, classes, label source, sizes and rates, and what was left out."""
        parts = [f"{self.samples} samples, {self._classes()} (label source: {self.label_source})"]
        parts += self.stored.parts()
        parts += [self.problem] if self.problem else []
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
    )


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
