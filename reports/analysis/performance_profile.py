"""Performance profiles: how often an objective is the fastest, or within a factor tau of the fastest.

    rho_a(tau) = share of problems in which T_a <= tau * min_b T_b,    tau in [1, 4]
    area_a     = 1/3 * integral of rho_a from 1 to 4

(Dolan and More 2002; the area is AlgoPerf's score, arXiv 2306.07179.) A problem is a seed of a cell: what
objectives share there (initial weights, data order, noise, times) makes it one problem. Where an objective
never reached the target within the cell's budget, or failed before, its ratio is infinite; where nobody
did, it is for all, so that a profile may end below 1. Equal times are both the best. A run that was there
at its first evaluation is taken at that evaluation: two of these are a tie. A problem without a finished or
failed run of every objective is left out, for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reports.race.workloads import Workload
from reports.stats.speedup import Time
from reports.stats.student import CONFIDENCE

MOST = 4.0
"""The largest tau (AlgoPerf)."""
ENOUGH = 20
"""Problems from which on the area has a bootstrap interval: of fewer it would be too narrow."""
RESAMPLES = 4_000
TIE = 1e-9
"""Relative slack of a tie: rounding alone makes nobody slower."""


@dataclass(frozen=True)
class Profile:
    """One axis. `ratios` has a row for each objective and a column for each problem: T / best, infinite
    where it never got there."""

    axis: str
    objectives: tuple[str, ...]
    ratios: np.ndarray
    strata: tuple[int, ...]
    """The number of the cell of each problem."""
    left_out: int
    """Problems without a run of every objective."""

    def share(self, tau: float) -> np.ndarray:
        """Return rho(tau) of each objective."""
        return (self.ratios <= tau * (1 + TIE)).mean(axis=1)

    def area(self) -> np.ndarray:
        """Return the normalised area below each profile from 1 to `MOST`, exact."""
        return _areas(self.ratios).mean(axis=1)

    def interval(self, confidence: float = CONFIDENCE) -> np.ndarray | None:
        """Return (objectives, 2): percentiles of the area over problems resampled within each cell; None
        below `ENOUGH`."""
        problems = self.ratios.shape[1]
        if problems < ENOUGH:
            return None
        rng, areas, strata = np.random.default_rng(0), _areas(self.ratios), np.array(self.strata)
        cells = [np.flatnonzero(strata == cell) for cell in np.unique(strata)]
        sums = np.zeros((len(areas), RESAMPLES))
        for own in cells:
            counts = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), size=RESAMPLES)
            sums += areas[:, own] @ counts.T
        ends = [(1 - confidence) / 2, (1 + confidence) / 2]
        return np.quantile(sums / problems, ends, axis=1).T


def compute_profile(objectives: Sequence[str], workloads: Sequence[Workload], axis: str) -> Profile | None:
    """Return the profile of a race on an axis; None with fewer than two objectives or without a problem
    that all have run.

    Cells that cannot be compared on this axis (another protocol within a cell, other hardware) hold no
    problem.
    """
    if len(objectives) < 2:
        return None
    columns, strata, left_out = [], [], 0
    for number, cell in enumerate(workloads):
        if axis not in cell.horizons or cell.why:
            continue
        times = [cell.times(objective, axis) for objective in objectives]
        seeds = sorted({seed for own in times for seed in own})
        whole = [seed for seed in seeds if all(seed in own for own in times)]
        left_out += len(seeds) - len(whole)
        columns += [ratios([own[seed] for own in times]) for seed in whole]
        strata += [number] * len(whole)
    if not columns:
        return None
    return Profile(axis, tuple(objectives), np.array(columns).T, tuple(strata), left_out)


def ratios(times: Sequence[Time]) -> np.ndarray:
    """Return each time over the best of them; infinite for one that is only a lower bound."""
    values = np.array([math.inf if time.censored == "right" else time.value for time in times])
    best = values.min()
    return values / best if math.isfinite(best) else np.full(len(values), math.inf)


def _areas(found: np.ndarray) -> np.ndarray:
    """Return the integral of [ratio <= tau] over tau from 1 to `MOST`, normalised."""
    return np.clip(MOST - found, 0, None) / (MOST - 1)
