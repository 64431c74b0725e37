"""Class order: labels of samples as classes of a reference, matched by name since a label is a position in a
list.
"""

from __future__ import annotations

import numpy as np

from harness.errors import UserError
from harness.evaluation.samples.sources import Source


def positions(samples: Source, reference: Source | None) -> tuple[int, ...]:
    """Return the position of each class of the samples among those of the reference; empty if labels need no
    change.

    Raises `UserError` for a class that the reference does not have.
    """
    own = samples.class_names
    theirs = reference.class_names if reference else ()
    if reference is None or not own or not theirs or own == theirs[: len(own)]:
        return ()
    unknown = [name for name in own if name not in theirs]
    if unknown:
        raise UserError(
            f"{samples.where} has the class '{unknown[0]}', which {reference.where} does not have (it has: {_few(theirs)}); "
            "rename the class folder"
        )
    return tuple(theirs.index(name) for name in own)


def reordered(labels: np.ndarray | None, order: tuple[int, ...]) -> np.ndarray | None:
    """Return labels (N,) of the samples as labels of the reference, by `positions`."""
    return np.array(order)[labels] if order and labels is not None else labels


def order_warning(samples: Source, reference: Source | None) -> str:
    """Return a warning if the samples' classes have names and those of the network are unknown, or
    nothing."""
    if not samples.class_names or (reference and reference.class_names):
        return ""
    return (
        f"the classes of {samples.where} are numbered in the order of their names ({_few(samples.class_names)}): "
        "accuracy is right only if the network's classes are in that order"
    )


def _few(names: tuple[str, ...], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
