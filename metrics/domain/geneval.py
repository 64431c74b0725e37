"""The tasks of GenEval (Ghosh et al. 2023, arXiv 2310.11513) on scenes of known cells.

GenEval judges a complete prompt of one task by a detector. Here the reader of `obedience.py` is the detector.
A caption belongs to every task whose form it has:

    single_object        one object                      its class is shown
    two_objects          two groups of other classes     both classes are shown
    counting             one group of several objects    exactly that number of its class is shown
    colours              one object                      its class is shown in its colour
    relative_position    two groups of other classes     both are shown, every object on its group's side
    colour_attribution   two groups, other in class      each class is shown in its own colour
                         and colour

GenEval's names are single_object, two_object, counting, colors, position and color_attr. Its overall score is
the mean over the tasks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metrics.domain.obedience import Attributes, Rule, Scene, binds, judged, shows_kinds, states_binding
from metrics.value import Value


def geneval(task: str, shown: Attributes, captions: Sequence[Scene]) -> Value:
    """Return the share of scenes that fulfil their caption in one task, with Wilson's interval.

    Its n is the number of captions of this task. Raises `MetricError` if none is.
    """
    return judged(_TASKS[task], task, shown, captions)


def _is_one_object(caption: Scene) -> bool:
    return len(caption) == 1 and caption[0].count == 1


def _is_one_group(caption: Scene) -> bool:
    return len(caption) == 1 and caption[0].count > 1


def _has_two_kinds(caption: Scene) -> bool:
    return len({group.kind for group in caption}) == 2


def _counts(shown: Attributes, caption: Scene) -> bool:
    return all(int((shown.kind == group.kind).sum()) == group.count for group in caption)


def _places(shown: Attributes, caption: Scene) -> bool:
    cells = [np.flatnonzero(shown.kind == group.kind) for group in caption]
    return all(
        len(found) > 0 and group.cells.issuperset(found.tolist())
        for found, group in zip(cells, caption, strict=True)
    )


_TASKS: dict[str, Rule] = {
    "single_object": (_is_one_object, shows_kinds),
    "two_objects": (_has_two_kinds, shows_kinds),
    "counting": (_is_one_group, _counts),
    "colours": (_is_one_object, binds),
    "relative_position": (_has_two_kinds, _places),
    "colour_attribution": (states_binding, binds),
}
TASKS = tuple(_TASKS)
"""The tasks that can be measured."""
