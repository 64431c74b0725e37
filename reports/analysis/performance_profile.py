"""Performance profiles: how often an objective is the fastest, or within a factor tau of the fastest.

    rho_a(tau) = fraction of problems in which T_a <= tau * min_b T_b,    tau in [1, 4]
    area_a     = 1/3 * integral of rho_a from 1 to 4

(Dolan and More 2002; the area is AlgoPerf's score, arXiv 2306.07179.) A problem is a seed of a cell, in
which objectives share initial weights, data order, noise and times. If an objective failed, or never reached
the target within the cell's budget, its ratio is infinite. If none reached it, all ratios are infinite, so a
profile may end below 1. Equal times are all best. A run already past the target at its first evaluation has
the time of that evaluation, so two such runs tie. A problem is left out unless every objective has a
finished or failed run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from reports.race.workloads import Workload
from reports.stats.speedup import Time
from reports.stats.t_interval import CONFIDENCE

MOST = 4.0
"""The largest tau (AlgoPerf)."""
ENOUGH = 20
"""The smallest number of problems for a bootstrap interval; with fewer it would be too narrow."""
RESAMPLES = 4_000
TIE = 1e-9
"""Relative tolerance of a tie, so that rounding alone breaks none."""


@dataclass(frozen=True)
class Profile:
    """The profiles of all objectives on one axis.

    `ratios` (objectives, problems) has T / best time, infinite if the target was not reached.
    """

    axis: str
    objectives: tuple[str, ...]
    ratios: np.ndarray
    strata: tuple[int, ...]
    """The index of each problem's cell."""
    left_out: int
    """Problems without a run of every objective."""

    def share(self, tau: float) -> np.ndarray:
        """Return rho(tau) of each objective."""
        return (self.ratios <= tau * (1 + TIE)).mean(axis=1)

    def area(self) -> np.ndarray:
        """Return the normalised area below each profile from 1 to `MOST`, exact."""
        return _areas(self.ratios).mean(axis=1)

    def interval(self, confidence: float = CONFIDENCE) -> np.ndarray | None:
        """Return percentile intervals of the area (objectives, 2), problems resampled within each cell.

        None with fewer than `ENOUGH` problems.
        """
        problems = self.ratios.shape[1]
        if problems < ENOUGH:
            return None
        areas, strata = _areas(self.ratios), np.array(self.strata)
        cells = [np.flatnonzero(strata == cell) for cell in np.unique(strata)]
        sums = np.zeros((len(areas), RESAMPLES))
        for cell, counts in zip(cells, _resampled(tuple(map(len, cells))), strict=True):
            sums += areas[:, cell] @ counts.T
        ends = [(1 - confidence) / 2, (1 + confidence) / 2]
        return np.quantile(sums / problems, ends, axis=1).T


def compute_profile(objectives: Sequence[str], workloads: Sequence[Workload], axis: str) -> Profile | None:
    """Return the profile of a race on an axis.

    None with fewer than two objectives, or without a problem that all have run. Cells that cannot be
    compared on this axis (several protocols, different hardware) contribute no problems.
    """
    if len(objectives) < 2:
        return None
    columns, strata, left_out = [], [], 0
    for number, cell in enumerate(workloads):
        if axis not in cell.horizons or cell.why:
            continue
        times = [cell.times(objective, axis) for objective in objectives]
        seeds = sorted({seed for by_seed in times for seed in by_seed})
        complete = [seed for seed in seeds if all(seed in by_seed for by_seed in times)]
        left_out += len(seeds) - len(complete)
        columns += [ratios([by_seed[seed] for by_seed in times]) for seed in complete]
        strata += [number] * len(complete)
    if not columns:
        return None
    return Profile(axis, tuple(objectives), np.array(columns).T, tuple(strata), left_out)


def ratios(times: Sequence[Time]) -> np.ndarray:
    """Return each time divided by the best; infinite for right-censored times."""
    values = np.array([math.inf if time.censored == "right" else time.value for time in times])
    best = values.min()
    return values / best if math.isfinite(best) else np.full(len(values), math.inf)


# The axes of a report have the same problems.
@lru_cache(maxsize=1)
def _resampled(sizes: tuple[int, ...]) -> list[np.ndarray]:
    """Return how often each resample (rows) has each problem (columns) of cells of these sizes."""
    rng = np.random.default_rng(0)
    return [rng.multinomial(size, np.full(size, 1 / size), size=RESAMPLES) for size in sizes]


def _areas(ratios: np.ndarray) -> np.ndarray:
    """Return the integral of [ratio <= tau] over tau from 1 to `MOST`, normalised."""
    return np.clip(MOST - ratios, 0, None) / (MOST - 1)
