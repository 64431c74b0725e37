"""Critical values for intervals that may be looked at more than once (repeated confidence intervals).

An interval mean -+ b_n sd / sqrt(n) is computed at registered numbers of pairs n, the looks. Together, all
looks miss the true mean with a probability of at most alpha, whatever the reason for stopping (Jennison and
Turnbull, Biometrika 78, 1991). How much of alpha the looks up to n may use is a spending function of n / N
(Kim and DeMets, Biometrika 74, 1987), N being the last look.

The values are exact, by numerical integration instead of simulation. Under a mean of zero,

    U_n = sum x / sqrt(sum x^2)        T_n = U_n sqrt((n - 1) / (n - U_n^2))

where T_n is Student's statistic. The direction of a normal vector is independent of its length, so U is a
Markov chain, U_{n+1} = U_n cos(theta) + sin(theta) with a density of theta proportional to cos^{n-1}(theta).

    n  pairs    U  chain    b  critical value of |T|
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import cast

import numpy as np
from scipy.optimize import brentq
from scipy.special import beta, betainc, ndtr, ndtri, stdtrit

SPENDING: Mapping[str, Callable[[float, float], float]] = MappingProxyType(
    {
        "linear": lambda t, alpha: alpha * t,
        "obrien_fleming": lambda t, alpha: 2 * float(ndtr(ndtri(alpha / 2) / math.sqrt(t))),
        "pocock": lambda t, alpha: alpha * math.log1p((math.e - 1) * t),
    }
)
"""Spending functions by name: the part of alpha that is used up to a share t of the pairs. The last two are
those of Lan and DeMets (Biometrika 70, 1983), like O'Brien and Fleming's and like Pocock's boundaries."""

FIRST_LOOK = 3
"""The smallest number of pairs with an interval that a verdict may rest on."""
_NODES = 400
"""Nodes of the grid of U between two kinks of the integrand."""
_ANGLES = 30_000
"""Angles from all nodes of a grid together, at least 48 from each."""


@lru_cache(maxsize=256)
def boundaries(looks: tuple[int, ...], alpha: float = 0.05, spending: str = "linear") -> Mapping[int, float]:
    """Return the critical value b_n of each look, in ascending order of at least two pairs.

    The probability under a true mean of zero that |T_n| > b_n at any look is `alpha`. With a single look it
    is Student's quantile. A look with nothing to spend has an infinite critical value.
    """
    first, *later = looks
    spend = SPENDING[spending]
    spent = spend(first / looks[-1], alpha)
    # The upper tail, because 1 - spent is 1 in floating point for the first looks of many.
    found = {first: -float(stdtrit(first - 1, spent / 2))}
    chain = _Chain.after(first, found[first])
    for look in later:
        while chain.n < look - 1:
            chain = chain.step(math.sqrt(chain.n + 1))
        allowed = spend(look / looks[-1], alpha) - spent
        # The crossing probability has a kink, which the grid must contain, in the current value of U.
        if chain.before is not None:
            chain = chain.before.step(chain.reach, ahead=chain.bound(allowed))
        bound = chain.bound(allowed)
        found[look] = math.inf if bound == math.sqrt(look) else _student(look, bound)
        chain, spent = chain.step(bound), spent + allowed
    return MappingProxyType(found)


def anytime_critical(n: int, g: float, alpha: float = 0.05) -> float:
    """Return the critical value at n pairs of an interval that holds at all numbers of pairs at once.

    It is the confidence sequence of a scale-invariant t test with the prior N(0, g) on the effect in units of
    its standard deviation (Wang and Ramdas, arXiv 2310.03722). It is infinite for the smallest n.
    """
    rho = 1 + n * g
    ratio = (rho / alpha**2) ** (1 / n)
    return math.inf if ratio >= rho else math.sqrt((n - 1) * rho * (ratio - 1) / (rho - ratio))


@dataclass(frozen=True)
class _Chain:
    """The distribution of |U_n| among the paths that have not crossed, as masses on a grid."""

    n: int
    grid: np.ndarray
    masses: np.ndarray
    reach: float
    """The bound of |U_n|."""
    before: _Chain | None = None

    @classmethod
    def after(cls, look: int, critical: float) -> _Chain:
        """Return the chain of the first look, of the paths with |T| <= `critical`."""
        n = look - 1
        ahead = math.sqrt(look / (1 + (look - 1) / critical**2))
        grid = _grid(math.sqrt(n), ahead)
        # U_n is sqrt(n) sin(phi) with a density of phi proportional to cos^{n-2}(phi).
        points, weights = _gauss(_ANGLES)
        phi = (points + 1) * math.pi / 4
        masses = np.cos(phi) ** (n - 2) * weights
        start = cls(n, grid, _spread(np.sqrt(n) * np.sin(phi), masses / masses.sum(), grid), math.sqrt(n))
        return start.step(ahead)

    def step(self, reach: float, ahead: float | None = None) -> _Chain:
        """Return the chain one pair later, of the paths with |U| <= `reach`.

        The grid is dense where the next bound, `ahead`, comes into reach.
        """
        grid = _grid(reach, reach if ahead is None else ahead)
        above, below = _angles(self.grid, reach)
        limit = np.full_like(self.grid, math.pi / 2)
        masses = np.zeros_like(grid)
        for low, high in ((-limit, below[0]), (below[1], above[0]), (above[1], limit)):
            masses += self._moved(low, high, grid)
        return _Chain(self.n + 1, grid, masses, reach, self)

    def crossing(self, bound: float) -> float:
        """Return the probability that the next |U| is the first above its bound."""
        above, below = _angles(self.grid, bound)
        share = sum(_share(high, self.n) - _share(low, self.n) for low, high in (above, below))
        return float(self.masses @ share)

    def bound(self, allowed: float) -> float:
        """Return the bound of the next |U| that is crossed first with a probability of `allowed`."""
        limit = math.sqrt(self.n + 1)
        if allowed <= 0 or self.crossing(limit * (1 - 1e-15)) >= allowed:
            return limit
        return cast(float, brentq(lambda b: self.crossing(b) - allowed, 1e-6, limit, xtol=1e-14))

    def _moved(self, low: np.ndarray, high: np.ndarray, grid: np.ndarray) -> np.ndarray:
        """Return the masses on the next grid that angles between two ends (len(self.grid),) lead to."""
        points, weights = _gauss(max(48, _ANGLES // len(self.grid)))
        middle, half = (low + high) / 2, (high - low) / 2
        theta = middle[:, None] + half[:, None] * points
        density = np.cos(theta) ** (self.n - 1) / beta(0.5, self.n / 2)
        weight = self.masses[:, None] * half[:, None] * density * weights
        moved = np.abs(self.grid[:, None] * np.cos(theta) + np.sin(theta))
        return _spread(moved.ravel(), weight.ravel(), grid)


def _spread(values: np.ndarray, masses: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Return masses on a grid; one between two nodes is shared so that its mean stays."""
    right = np.clip(np.searchsorted(grid, values), 1, len(grid) - 1)
    share = np.clip((values - grid[right - 1]) / (grid[right] - grid[right - 1]), 0, 1)
    upper = np.bincount(right, masses * share, len(grid))
    return upper + np.bincount(right - 1, masses * (1 - share), len(grid))


@lru_cache
def _gauss(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return points in [-1, 1] and weights of Gauss-Legendre quadrature, in pieces of 48 points."""
    points, weights = np.polynomial.legendre.leggauss(48)
    pieces = max(1, count // 48)
    middles = (2 * np.arange(pieces) + 1) / pieces - 1
    return (middles[:, None] + points / pieces).ravel(), np.tile(weights / pieces, pieces)


def _student(n: int, bound: float) -> float:
    """Return the bound of |T_n| for a bound of |U_n|."""
    return bound * math.sqrt((n - 1) / (n - bound * bound))


def _grid(reach: float, ahead: float) -> np.ndarray:
    """Return values of U in [0, reach], dense at both sides of the value from which `ahead` is in reach."""
    kink = math.sqrt(max(0.0, ahead * ahead - 1))
    ends = [0.0, kink, reach] if 0 < kink < reach else [0.0, reach]
    share = (1 - np.cos(np.linspace(0, math.pi, _NODES))) / 2
    pieces = [low + (high - low) * share for low, high in itertools.pairwise(ends)]
    return np.unique(np.concatenate(pieces))


def _angles(u: np.ndarray, bound: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the angles that lead above `bound` and below -`bound`, each (2, len(u))."""
    shift, limit = np.arctan(u), math.pi / 2
    half = np.arcsin(np.minimum(1.0, bound / np.sqrt(1 + u * u)))
    above = np.clip([half - shift, math.pi - half - shift], -limit, limit)
    below = np.clip([half - math.pi - shift, -half - shift], -limit, limit)
    return above, below


def _share(theta: np.ndarray, n: int) -> np.ndarray:
    """Return the signed half of the probability of an angle between -theta and theta."""
    return np.sign(theta) * betainc(0.5, n / 2, np.sin(theta) ** 2) / 2
