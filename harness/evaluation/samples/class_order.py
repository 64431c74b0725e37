"""Class order: labels of samples as classes of a reference, matched by name.

A label is only a position in a list of names, and two folders may have different lists.
"""

from __future__ import annotations

import numpy as np

from harness.data.disk.labels import DIGITS
from harness.errors import UserError
from harness.evaluation.samples.sources import Source


def positions(samples: Source, reference: Source | None) -> tuple[int, ...]:
    """Return the position of each class of the samples among those of the reference.

    It is empty if labels need no change, or if one side has no class names. Raises `UserError` for a class
    that the reference does not have.
    """
    if reference is None:
        return ()
    names, real_names = _comparable(_names(samples, reference), _names(reference, samples))
    if not names or not real_names or names == real_names[: len(names)]:
        return ()
    present = _present(samples, len(names))
    unknown = [name for name, there in zip(names, present, strict=True) if there and name not in real_names]
    if unknown:
        raise UserError(
            f"{samples.where} has the class '{unknown[0]}', which {reference.where} does not have (it has: "
            f"{_first(real_names)}); rename the class folder"
        )
    return tuple(real_names.index(name) if name in real_names else 0 for name in names)


def _names(source: Source, other: Source) -> tuple[str, ...]:
    """Return the class names of a source; numbers if it has none and the other's names are numbers."""
    if source.class_names or not _numeric(other.class_names) or source.labelled is None:
        return source.class_names
    return tuple(map(str, range(source.labelled.classes))) if source.labelled.classes > 1 else ()


def _comparable(
    names: tuple[str, ...], real_names: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of both sides; numbers without leading zeros, if all are numbers."""
    if not _numeric(names) or not _numeric(real_names):
        return names, real_names
    return tuple(str(int(name)) for name in names), tuple(str(int(name)) for name in real_names)


def _numeric(names: tuple[str, ...]) -> bool:
    return bool(names) and all(name.isdecimal() and len(name) <= DIGITS for name in names)


def _present(source: Source, classes: int) -> list[bool]:
    """Return for each class whether it has samples; True for all if that is not known."""
    counts = source.found.classes if source.found else ()
    return [count > 0 for _, count in counts] if len(counts) == classes else [True] * classes


def reordered(labels: np.ndarray | None, order: tuple[int, ...]) -> np.ndarray | None:
    """Return labels (N,) of the samples as labels of the reference; `order` is the result of `positions`."""
    return np.array(order)[labels] if order and labels is not None else labels


def order_warning(samples: Source, reference: Source | None) -> str:
    """Return a warning if the samples' classes have names but the network's have not, else nothing."""
    if not samples.class_names or (reference and _names(reference, samples)):
        return ""
    return (
        f"the classes of {samples.where} are numbered in the order of their names "
        f"({_first(samples.class_names)}): accuracy is correct only if the network's classes are in that "
        "order"
    )


def _first(names: tuple[str, ...], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
