"""The scenes of the data set `prompts` as the metrics `obeys:*` compare them: cells shown, and captions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness.data.generated.prompts import CELL, COLOURS, PLACES, RELATIONS, SIDE, SIZES, Truth
from metrics.domain.obedience import EMPTY, Attributes, Wanted

PER_ROW = SIDE // CELL
COLOUR_NAMES, SIZE_NAMES = tuple(COLOURS), tuple(SIZES)


def known_cells(truths: Sequence[Truth]) -> Attributes:
    """Return what the cells of known scenes show, row by row."""
    shown = Attributes(*(np.full((len(truths), PER_ROW**2), EMPTY) for _ in Attributes._fields))
    for row, truth in enumerate(truths):
        for thing in truth.objects:
            cell = thing.row // CELL * PER_ROW + thing.column // CELL
            shown.kind[row, cell] = thing.digit
            shown.colour[row, cell] = COLOUR_NAMES.index(thing.colour)
            shown.size[row, cell] = SIZE_NAMES.index(thing.size)
    return shown


def wanted_scene(truth: Truth) -> tuple[Wanted, ...]:
    """Return what the first caption of a scene asks for, which states every attribute."""
    if truth.relation:
        cells = RELATIONS[truth.relation][1:]
    else:
        cells = (PLACES[truth.count][truth.place] if truth.place else (),)
    return tuple(
        Wanted(
            group.digit,
            COLOUR_NAMES.index(group.colour),
            SIZE_NAMES.index(group.size),
            group.count,
            frozenset(own),
        )
        for group, own in zip(truth.groups, cells, strict=True)
    )
