"""Labels next to samples: which column or array holds them, and their values as class numbers.

Only columns with a usual name are labels, or the column that `data.label_key` names. Labels that cannot be
used, for example hidden test labels, raise no error before something needs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from harness.errors import UserError

USUAL = (
    "label", "labels", "class", "classes", "class_id", "class_idx", "class_index", "class_name",
    "class_label", "cls", "y", "target", "targets", "category", "category_id", "fine_label",
    "coarse_label", "fine", "coarse", "digit",
)  # fmt: skip
"""Names of columns that hold labels, in lower case."""
NONE = "none"
"""The value of `data.label_key` for data whose labels are not used."""
DIGITS = 18
"""Digits of a class number; longer ones are names."""
HIDDEN = -1
"""The label of samples whose label is not published."""


class Labels(NamedTuple):
    """The labels of all samples; all are 0 without labels or if they cannot be used."""

    labels: np.ndarray
    """int64 (n,)."""
    classes: int
    names: tuple[str, ...] = ()
    """Class names in the order of labels; empty if classes are only numbered."""
    problem: str = ""
    """Why existing labels cannot be used."""


def label_column(columns: Sequence[str], where: str, key: str = "", preferred: Sequence[str] = ()) -> str:
    """Return the column of labels, "" without one.

    `key` is `data.label_key`. `preferred` are columns that a file declares as classes. Without both, it is
    the column `label`, or the only one with a usual name. Raises `UserError` if there are several.
    """
    if key == NONE and NONE not in columns:
        return ""
    if key:
        return key
    if "label" in columns:
        return "label"
    found = list(preferred) or [name for name in columns if name.lower() in USUAL]
    if len(found) > 1:
        raise UserError(
            f"{where}, of which {', '.join(found)} may be labels; choose one with data.label_key, or set "
            f"data.label_key={NONE}"
        )
    return found[0] if found else ""


def checked_labels(labels: np.ndarray | None, n: int, where: str, *, below: int = 0) -> Labels:
    """Return labels and the number of classes, the largest label plus one. Without labels, all are 0.

    Raises `UserError`, naming the row, for labels that are not integers or not in 0 .. below - 1. The default
    of `below` is `most_classes(n)`.
    """
    if labels is None:
        return unlabelled(n)
    if labels.shape not in ((n,), (n, 1)):
        raise UserError(f"{where}: labels have shape {labels.shape}, expected ({n},), one per image")
    if labels.dtype.kind not in "iu":
        raise UserError(f"{where}: labels are of type {labels.dtype}, expected integers from 0")
    labels = labels.reshape(n)
    below = below or most_classes(n)
    for row in np.flatnonzero((labels < 0) | (labels >= below))[:1]:
        raise UserError(
            f"{where}: label {labels[row]} of row {row} is out of range, expected 0 to {below - 1}"
        )
    return Labels(labels.astype(np.int64), int(labels.max(initial=0)) + 1)


def usable_labels(
    values: np.ndarray,
    n: int,
    where: str,
    *,
    names: Sequence[str] = (),
    below: int = 0,
    chosen: bool = False,
) -> Labels:
    """Return labels of any type as class numbers.

    Integers from 0 are class numbers, of the classes `names` if a file declares them. Texts that repeat are
    class names. For hidden labels, texts that do not repeat and fractions, the result holds the problem, or
    raises it if the user has `chosen` these labels. Raises `UserError` for labels that are out of range.
    """
    if len(values.shape) and len(values) == n:
        values = _plain(values)
        if problem := _problem(values, where):
            if chosen:
                raise UserError(f"{problem}; choose others with data.label_key")
            return unlabelled(n, problem)
        if values.dtype.kind in "UO":
            return named_classes([str(value) for value in values])
    found = checked_labels(values, n, where, below=len(names) or below)
    return found._replace(classes=len(names), names=tuple(names)) if names else found


def unlabelled(n: int, problem: str = "") -> Labels:
    """Return the labels of data without labels, all 0."""
    return Labels(np.zeros(n, dtype=np.int64), 1, problem=problem)


def named_classes(values: Sequence[str]) -> Labels:
    """Return the classes of texts: in numeric order if all are numbers, else in alphabetical order."""
    names = in_order(set(values))
    number = {name: index for index, name in enumerate(names)}
    labels = np.array([number[value] for value in values], dtype=np.int64)
    return Labels(labels, max(1, len(names)), tuple(names))


def in_order(names: Sequence[str] | set[str]) -> list[str]:
    """Return names of classes in numeric order if all are numbers, else in alphabetical order."""
    numeric = all(name.isdecimal() and len(name) <= DIGITS for name in names)
    return sorted(names, key=lambda name: (int(name), name) if numeric else (0, name))


def most_classes(n: int) -> int:
    """Return the largest plausible number of classes: one per sample, or 1000 for a small excerpt."""
    return max(n, 1000)


def _plain(values: np.ndarray) -> np.ndarray:
    """Return labels in one dimension, integral numbers as integers, and bytes as texts."""
    values = values.reshape(len(values)) if values.shape == (len(values), 1) else values
    kind = values.dtype.kind
    if kind == "S":
        return np.char.decode(values, "utf-8", "replace")
    whole = kind == "f" and bool(np.isfinite(values).all() and (values == np.round(values)).all())
    return values.astype(np.int64) if whole or kind == "b" else values


def _problem(values: np.ndarray, where: str) -> str:
    """Return why values cannot be labels, "" if they can."""
    kind, n = values.dtype.kind, len(values)
    if values.ndim > 1:
        return f"{where}: labels have shape {values.shape}, expected ({n},), one per image"
    if kind == "i" and values.min(initial=0) == HIDDEN:
        return f"{where}: {int((values == HIDDEN).sum())} of {n} labels are hidden ({HIDDEN})"
    if kind == "f":
        return f"{where}: labels are of type {values.dtype}, and some are not whole numbers"
    if kind == "O" and not all(isinstance(value, str) for value in values):
        return f"{where}: some labels are empty or no texts"
    if kind in "UO" and n < 2 * (different := len(set(values.tolist()))):
        return f"{where}: {different} different texts for {n} samples are captions, not classes"
    return ""
