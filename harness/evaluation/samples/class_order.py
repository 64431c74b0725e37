"""Class order: labels of samples as classes of a reference, matched by name.

A label is only a position in a list of names, and two folders may have different lists.
"""

from __future__ import annotations

import numpy as np

from harness.errors import UserError
from harness.evaluation.samples.sources import Source


def positions(samples: Source, reference: Source | None) -> tuple[int, ...]:
    """Return the position of each class of the samples among those of the reference.

    It is empty if labels need no change, or if one side has no class names. Raises `UserError` for a class
    that the reference does not have.
    """
    names = samples.class_names
    real_names = reference.class_names if reference else ()
    if reference is None or not names or not real_names or names == real_names[: len(names)]:
        return ()
    unknown = [name for name in names if name not in real_names]
    if unknown:
        raise UserError(
            f"{samples.where} has the class '{unknown[0]}', which {reference.where} does not have (it has: "
            f"{_first(real_names)}); rename the class folder"
        )
    return tuple(real_names.index(name) for name in names)


def reordered(labels: np.ndarray | None, order: tuple[int, ...]) -> np.ndarray | None:
    """Return labels (N,) of the samples as labels of the reference; `order` is the result of `positions`."""
    return np.array(order)[labels] if order and labels is not None else labels


def order_warning(samples: Source, reference: Source | None) -> str:
    """Return a warning if the samples' classes have names but the network's have not, else nothing."""
    if not samples.class_names or (reference and reference.class_names):
        return ""
    return (
        f"the classes of {samples.where} are numbered in the order of their names "
        f"({_first(samples.class_names)}): accuracy is correct only if the network's classes are in that "
        "order"
    )


def _first(names: tuple[str, ...], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
