"""Validation of features: numpy or torch in, finite two-dimensional numpy out, or a `MetricError`."""

from __future__ import annotations

from typing import Any

import numpy as np

from metrics.value import MetricError

BLOCK = 1024
"""Number of rows compared with all others at once."""


def as_features(given: Any, name: str, *, least: int = 1) -> np.ndarray:
    """Return an (N, d) array or tensor of any real type as numpy: float32 unchanged, other types as float64.

    Raises `MetricError` for another shape, fewer than `least` rows, no columns, or non-finite values.
    """
    # Recognises a tensor without importing torch; float64, because numpy has no bfloat16.
    if hasattr(given, "detach"):
        given = given.detach().cpu()
        given = given if str(given.dtype) == "torch.float32" else given.double()
    array = np.asarray(given)
    if array.ndim != 2:
        raise MetricError(f"{name} features have shape {array.shape}; expected (N, d), one row per sample")
    if array.dtype.kind not in "fiub":
        raise MetricError(f"{name} features are {array.dtype}; expected real numbers")
    n, dim = array.shape
    if n < least:
        raise MetricError(f"{name} features have {n} rows; at least {least} are needed")
    if dim == 0:
        raise MetricError(f"{name} features have no columns: shape {array.shape}")
    array = array if array.dtype == np.float32 else array.astype(np.float64, copy=False)
    broken = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(broken):
        raise MetricError(
            f"{name} features are not finite in {len(broken)} of {n} rows; the first is row {broken[0]}"
        )
    # torch.from_numpy shares only memory that is contiguous and writable.
    return np.require(array, requirements=["C", "W"])


def as_pair(real: Any, fake: Any, *, least: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Return real and generated features of the same dimension as float64."""
    first, second = as_given(real, fake, least=least)
    return first.astype(np.float64, copy=False), second.astype(np.float64, copy=False)


def as_given(real: Any, fake: Any, *, least: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Return real and generated features of the same dimension; float32 stays float32, in half the memory."""
    first, second = as_features(real, "real", least=least), as_features(fake, "fake", least=least)
    check_dims(first.shape[1], second.shape[1])
    return first, second


def check_dims(first: int, second: int) -> None:
    """Raise `MetricError` for features of different dimensions."""
    if first != second:
        raise MetricError(
            f"features have {first} columns on one side and {second} on the other; "
            "both sides must come from the same extractor"
        )
