"""The Frechet distance between Gaussians fitted to features, from streamed moments or from the features.

    FD = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)      (Dowson and Landau 1982; Heusel et al. 2017)

With R^T R = S1 the last trace is that of (R S2 R^T)^(1/2), a symmetric matrix. Let A and B be the centred
features divided by sqrt(n - 1), so that S1 = A^T A and S2 = B^T B. Then the trace is the sum of the singular
values of A B^T. No square is formed, so singular covariances (N <= d) lose no digits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from metrics.arrays import as_features, check_dims
from metrics.value import MetricError, Value

BLOCK = 4096
"""Number of rows accumulated at once; fixed, so that a stream's moments have the same bits at any batch
size."""
ROUNDING = 1e-6
"""Share of the largest entry by which rounding may make a scatter negative or not symmetric."""
SMALL = 1000
"""Up to this number of rows, features are not reduced to a covariance: more accurate, and faster for large
d."""


class State(NamedTuple):
    """Count, mean (d,) and centred second moment (d, d), the sum of (x - mean)(x - mean)^T."""

    n: int
    mean: np.ndarray
    scatter: np.ndarray


class Moments:
    """Mean and covariance of a stream of features, in float64, mergeable over shards (Chan et al. 1979)."""

    def __init__(self) -> None:
        self._state: State | None = None
        self._block = np.empty((0, 0))
        """Rows waiting to make up a BLOCK, in one array that is reused."""
        self._waiting = 0

    def add(self, features: Any) -> None:
        """Add a batch (B, d), numpy or torch; raises `MetricError` for a wrong shape, size or value."""
        rows = as_features(features, "streamed", least=0)
        if self.n:
            check_dims(self.dim, rows.shape[1])
        if self._block.shape[1] != rows.shape[1]:
            self._block = np.empty((BLOCK, rows.shape[1]))
        for start in range(0, len(rows), BLOCK):
            self._take(rows[start : start + BLOCK])

    def merge(self, other: Moments) -> None:
        """Add the moments of another shard."""
        if self.n and other.n:
            check_dims(self.dim, other.dim)
        self._state = _join(self._total(), other._total())
        self._waiting = 0

    @property
    def n(self) -> int:
        """Number of samples added."""
        return (self._state.n if self._state else 0) + self._waiting

    @property
    def dim(self) -> int:
        """Number of columns d; raises `MetricError` before the first batch."""
        return self._block.shape[1] if self._waiting else len(self._some().mean)

    @property
    def mean(self) -> np.ndarray:
        """Mean (d,)."""
        return self._some().mean

    @property
    def covariance(self) -> np.ndarray:
        """Covariance (d, d), divided by n - 1 as numpy.cov does."""
        state = self._some()
        if state.n < 2:
            raise MetricError("a covariance needs at least 2 samples but got 1")
        return state.scatter / (state.n - 1)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the state as plain arrays: n, mean, scatter."""
        return {name: np.asarray(value) for name, value in zip(State._fields, self._some(), strict=True)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> Moments:
        """Restore the state from `to_arrays`; raises `MetricError` for invalid arrays."""
        try:
            n, mean, scatter = int(arrays["n"]), np.array(arrays["mean"]), np.array(arrays["scatter"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise MetricError(
                f"stored moments must have the arrays {', '.join(State._fields)}: {error}"
            ) from error
        square = mean.ndim == 1 and scatter.shape == (len(mean), len(mean))
        if n < 1 or not square or mean.dtype != np.float64 or scatter.dtype != np.float64:
            raise MetricError(
                f"stored moments do not match: n {n}, mean {mean.shape} {mean.dtype}, scatter "
                f"{scatter.shape} {scatter.dtype}; expected n of 1 or more, (d,) and (d, d) in float64"
            )
        if not (np.isfinite(mean).all() and np.isfinite(scatter).all()):
            raise MetricError("stored moments are not finite")
        _check_covariance(scatter)
        moments = cls()
        moments._state = State(n, mean, scatter)
        return moments

    def _take(self, rows: np.ndarray) -> None:
        """Add up to BLOCK rows; a full block is merged into the state."""
        first = rows[: BLOCK - self._waiting]
        self._block[self._waiting : self._waiting + len(first)] = first
        self._waiting += len(first)
        if self._waiting == BLOCK:
            self._state = _join(self._state, _state(self._block))
            self._waiting = len(rows) - len(first)
            self._block[: self._waiting] = rows[len(first) :]

    def _total(self) -> State | None:
        waiting = self._block[: self._waiting].copy()
        return _join(self._state, _state(waiting)) if len(waiting) else self._state

    def _some(self) -> State:
        state = self._total()
        if state is None:
            raise MetricError("no features have been added")
        return state


def frechet_distance(real: Any, fake: Any) -> Value:
    """Return the Frechet distance between two sets of features, each an (N, d) array or tensor, or `Moments`.

    It is exact (singular values) if a side is given as features and has at most max(d, 1000) rows. Otherwise
    it uses the symmetric eigenvalues of float64 covariances. One evaluation does not determine the spread, so
    there is no interval. The value is biased upwards in proportion to 1/N: compare values at equal N only, or
    use `frechet_infinity`. Raises `MetricError` for fewer than 2 samples, different d, or non-finite values.
    """
    first, second = _fitted(real, "real"), _fitted(fake, "fake")
    check_dims(len(first.mean), len(second.mean))
    if isinstance(first, _Gaussian) and isinstance(second, _Gaussian):
        root = first.factor()
        shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second.covariance @ root.T), 0)).sum()
    else:
        shared = np.linalg.svd(first.factor() @ second.factor().T, compute_uv=False).sum()
    shift = first.mean - second.mean
    distance = shift @ shift + first.trace() + second.trace() - 2 * shared
    return Value(max(float(distance), 0.0), n=second.n)


def moments_of(features: np.ndarray) -> Moments:
    """Return the moments of an (N, d) array."""
    moments = Moments()
    for start in range(0, len(features), BLOCK):
        moments.add(features[start : start + BLOCK])
    return moments


class _Gaussian(NamedTuple):
    n: int
    mean: np.ndarray
    covariance: np.ndarray

    def trace(self) -> float:
        return float(np.trace(self.covariance))

    def factor(self) -> np.ndarray:
        """Return R with R^T R = covariance; eigenvalues that rounding made negative are set to 0."""
        values, vectors = np.linalg.eigh(self.covariance)
        return np.sqrt(np.maximum(values, 0))[:, None] * vectors.T


class _Rows(NamedTuple):
    n: int
    mean: np.ndarray
    rows: np.ndarray
    """rows^T rows is the covariance."""

    def trace(self) -> float:
        return float((self.rows * self.rows).sum())

    def factor(self) -> np.ndarray:
        return self.rows


def _fitted(given: Any, name: str) -> _Gaussian | _Rows:
    if not isinstance(given, Moments):
        features = as_features(given, name, least=2)
        if len(features) <= max(SMALL, features.shape[1]):
            return _rows(features.astype(np.float64))
        given = moments_of(features)
    if given.n < 2:
        raise MetricError(f"{name} moments have {given.n} samples; at least 2 are needed")
    return _Gaussian(given.n, given.mean, given.covariance)


def _rows(features: np.ndarray) -> _Rows:
    mean = features.mean(axis=0)
    rows = (features - mean) / np.sqrt(len(features) - 1)
    if len(rows) > rows.shape[1]:
        # d rows with the same rows^T rows. asarray, because numpy's types do not declare that mode "r"
        # returns one array.
        rows = np.asarray(np.linalg.qr(rows, mode="r"))
    return _Rows(len(features), mean, rows)


def _state(rows: np.ndarray) -> State:
    """Return the state of rows, which are overwritten by their deviations from the mean."""
    mean = rows.mean(axis=0)
    rows -= mean
    return State(len(rows), mean, rows.T @ rows)


def _join(a: State | None, b: State | None) -> State | None:
    if a is None or b is None:
        return b if a is None else a
    n, shift = a.n + b.n, b.mean - a.mean
    scatter = np.outer(shift, shift * (a.n * b.n / n))
    # In place, because each of these takes 32 MiB at d = 2,048.
    scatter += a.scatter
    scatter += b.scatter
    return State(n, a.mean + shift * (b.n / n), scatter)


def _check_covariance(scatter: np.ndarray) -> None:
    """Raise `MetricError` for a matrix (d, d) that is no sum of outer products."""
    rounding = ROUNDING * float(np.abs(scatter).max(initial=0))
    if (least := float(scatter.diagonal().min(initial=0))) < -rounding:
        raise MetricError(f"stored moments have a negative variance: {least:.3g}")
    if np.abs(scatter - scatter.T).max(initial=0) > rounding:
        raise MetricError("stored moments have a covariance that is not symmetric")
