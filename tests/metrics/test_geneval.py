"""Tasks of GenEval on known scenes: the form of a caption decides its task, and all of it is judged."""

from __future__ import annotations

import numpy as np
import pytest

from metrics.domain.geneval import TASKS, geneval
from metrics.domain.obedience import EMPTY, Attributes, Wanted
from metrics.intervals import share
from metrics.value import MetricError

LEFT, RIGHT = frozenset({0, 2}), frozenset({1, 3})
ONE = (Wanted(7, 0, 0, 1, frozenset({0})),)
"""A red seven in the top left."""
SEVERAL = (Wanted(7, 0, 0, 2, frozenset({0, 1})),)
BOTH = (Wanted(7, 0, 0, 1, LEFT), Wanted(1, 2, 0, 1, RIGHT))
"""A red seven left of a blue one."""
ALIKE = (Wanted(7, 0, 0, 1, LEFT), Wanted(7, 2, 0, 1, RIGHT))
"""A red seven left of a blue seven, which GenEval has no task for."""


def shown(*cells: tuple[int, int] | None) -> Attributes:
    """Return one scene of classes and colours, cell by cell."""
    rows = np.array([(*cell, 0) if cell else (EMPTY,) * 3 for cell in cells])
    return Attributes(*(rows[None, :, i] for i in range(3)))


@pytest.mark.parametrize(
    ("caption", "tasks"),
    [
        (ONE, {"single_object", "colours"}),
        (SEVERAL, {"counting"}),
        (BOTH, {"two_objects", "relative_position", "colour_attribution"}),
        ((BOTH[0], Wanted(1, 0, 0, 1, RIGHT)), {"two_objects", "relative_position"}),
        (ALIKE, set()),
    ],
)
def test_form_of_a_caption_decides_its_tasks(caption: tuple[Wanted, ...], tasks: set[str]) -> None:
    for task in TASKS:
        if task in tasks:
            assert geneval(task, shown(None, None, None, None), [caption]) == share(np.array([False]), 1)
        else:
            with pytest.raises(MetricError, match=f"no caption states the attribute '{task}'"):
                geneval(task, shown(None, None, None, None), [caption])


@pytest.mark.parametrize(
    ("scene", "caption", "fulfilled"),
    [
        (shown((7, 0), None, None, None), ONE, {"single_object", "colours"}),
        # Another place, and more objects, are of no interest to the task of a single object.
        (shown(None, (7, 0), (3, 1), None), ONE, {"single_object", "colours"}),
        (shown((7, 2), None, None, None), ONE, {"single_object"}),
        (shown((7, 0), (7, 0), None, None), SEVERAL, {"counting"}),
        (shown((7, 0), (7, 0), (7, 0), None), SEVERAL, set()),
        (shown((7, 0), (1, 0), None, None), SEVERAL, set()),
        (shown((7, 0), (1, 2), None, None), BOTH, {"two_objects", "relative_position", "colour_attribution"}),
        (shown((1, 2), (7, 0), None, None), BOTH, {"two_objects", "colour_attribution"}),
        (shown((7, 2), (1, 0), None, None), BOTH, {"two_objects", "relative_position"}),
        (shown((7, 0), None, None, None), BOTH, set()),
    ],
)
def test_whole_caption_is_judged(scene: Attributes, caption: tuple[Wanted, ...], fulfilled: set[str]) -> None:
    found = set()
    for task in TASKS:
        try:
            found |= {task} if geneval(task, scene, [caption]).mean == 1 else set()
        except MetricError:
            continue
    assert found == fulfilled
