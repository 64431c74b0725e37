"""Noise floor: the distance between two sets of real samples, the score of a perfect generator."""

from __future__ import annotations

from typing import Any

import numpy as np

from harness.runtime.random_streams import Streams
from metrics.distances.frechet import Moments, frechet_distance

Part = np.ndarray | Moments


def halves_mask(count: int, samples: int) -> np.ndarray:
    """Return a fixed mask (count,) of `samples` real samples, the number generated, but at most half of
    them.
    """
    mask = np.zeros(count, dtype=bool)
    mask[Streams(0).permutation("floor", 0, count)[: min(samples, count // 2)]] = True
    return mask


def noise_floor(rest: Part, subset: Part) -> dict[str, Any] | None:
    """Return the distance between two sets of real samples, as JSON, or None if a set has fewer than 2."""
    n, n_real = (part.n if isinstance(part, Moments) else len(part) for part in (subset, rest))
    if min(n, n_real) < 2:
        return None
    return {"mean": frechet_distance(rest, subset).mean, "n": n, "n_real": n_real}
