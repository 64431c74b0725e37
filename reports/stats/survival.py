"""Times to target with censored runs: the Kaplan-Meier curve and the restricted mean time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reports.stats.speedup import Time


def kaplan_meier(times: Sequence[Time]) -> list[tuple[float, float]]:
    """Return pairs (time, share of runs that have reached the target by then), beginning with (0, 0).

    The estimate is that of Kaplan & Meier 1958. A run already below the target at its first evaluation counts
    as reaching it then.
    """
    value = np.array([time.value for time in times])
    event = np.array([time.censored != "right" for time in times])
    curve, waiting = [(0.0, 0.0)], 1.0
    for at in np.unique(value[event]):
        waiting *= 1 - (event & (value == at)).sum() / (value >= at).sum()
        curve.append((float(at), float(1 - waiting)))
    return curve


def mean_until(times: Sequence[Time], horizon: float) -> float:
    """Return the restricted mean time to the target: the area above the curve up to a horizon.

    Source: Royston & Parmar 2013.
    """
    at, share = zip(*[point for point in kaplan_meier(times) if point[0] < horizon], strict=True)
    return float(np.sum((1 - np.array(share)) * np.diff([*at, horizon])))
