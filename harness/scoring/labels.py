"""Labels of samples as classes of a reference: by name where both have names, since a label is but a place in a list of them."""

from __future__ import annotations

import numpy as np

from harness.errors import UserError
from harness.scoring.sources import Source


def places(samples: Source, reference: Source | None) -> tuple[int, ...]:
    """For each class of the samples its place among those of the reference; empty where the labels can stand as they are.

    Raises `UserError` for a class that the reference does not have.
    """
    own, theirs = samples.class_names, reference.class_names if reference else ()
    if not own or not theirs or own == theirs[: len(own)]:
        return ()
    unknown = [name for name in own if name not in theirs]
    if unknown:
        raise UserError(
            f"{samples.where} has the class '{unknown[0]}', which {reference.where} does not have (it has: {_few(theirs)}); "
            "rename the class folder"
        )
    return tuple(theirs.index(name) for name in own)


def placed(labels: np.ndarray | None, order: tuple[int, ...]) -> np.ndarray | None:
    """Labels (N,) of the samples as labels of the reference, by `places`."""
    return np.array(order)[labels] if order and labels is not None else labels


def counted(samples: Source, reference: Source | None) -> str:
    """What to say where the samples' classes have names and nothing tells which of the network's they are; else nothing."""
    if not samples.class_names or (reference and reference.class_names):
        return ""
    return (
        f"the classes of {samples.where} are told by number alone, in the order of their names ({_few(samples.class_names)}): "
        "accuracy is right only where the network's are in that order"
    )


def _few(names: tuple[str, ...], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
