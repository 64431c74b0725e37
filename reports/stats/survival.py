"""When runs reach a target if some never do: Kaplan and Meier's curve, and the mean time until a horizon."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reports.stats.speedup import Time


def kaplan_meier(times: Sequence[Time]) -> list[tuple[float, float]]:
    """(time, share of runs that have reached the target by then), one step a time at which a run does; (0,
    0) first.

    Kaplan & Meier 1958. A run that was there at its first evaluation counts as reaching it then.
    """
    value = np.array([time.value for time in times])
    event = np.array([time.censored != "right" for time in times])
    curve, waiting = [(0.0, 0.0)], 1.0
    for at in np.unique(value[event]):
        waiting *= 1 - (event & (value == at)).sum() / (value >= at).sum()
        curve.append((float(at), float(1 - waiting)))
    return curve


def mean_until(times: Sequence[Time], horizon: float) -> float:
    """Return restricted mean time to the target: the area over the curve up to a horizon (Royston & Parmar
    2013)."""
    at, share = zip(*[point for point in kaplan_meier(times) if point[0] < horizon], strict=True)
    return float(np.sum((1 - np.array(share)) * np.diff([*at, horizon])))
