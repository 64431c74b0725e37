"""Reference statistics in a file, in ADM's format or in ours.

ADM's npz (guided-diffusion evaluations/README.md) holds `mu` and `sigma` of Inception's pooled features,
`mu_s` and `sigma_s` of sFID's, and several thousand raw images `arr_0`. The statistics are those of a full
training set, whose size is not recorded.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from metrics.distances.frechet import Moments
from metrics.files.cache import Saved, read_saved, write_saved
from metrics.files.numpy_files import BROKEN, check_members
from metrics.value import MetricError

FORMAT = "flowrace-statistics-1"


class Reference(NamedTuple):
    """Moments of a reference, without its samples."""

    features: Moments
    spatial: Moments | None
    n: int | None
    """Number of samples; None if it is not recorded."""
    meta: dict[str, str]
    """`extractor`, `weights_sha256`, `preprocessing`, `data`, and `frames` for clips; empty in ADM's."""


def is_adm(file: Path) -> bool:
    """Return True for an npz file with `mu` and `sigma`."""
    return file.suffix == ".npz" and file.is_file() and {"mu", "sigma"} <= set(_names(file))


def read_adm(file: Path) -> Reference:
    """Read the statistics of ADM's npz, without its images; raises `MetricError` for invalid arrays."""
    try:
        check_members(file)
        with np.load(file, allow_pickle=False) as content:
            features = _moments(content["mu"], content["sigma"])
            has_spatial = {"mu_s", "sigma_s"} <= set(content.files)
            spatial = _moments(content["mu_s"], content["sigma_s"]) if has_spatial else None
    except MetricError as error:
        raise MetricError(f"{file}: mu and sigma are not valid statistics: {error}") from error
    except BROKEN as error:
        raise MetricError(f"{file} is not a readable npz of plain arrays: {error}") from error
    return Reference(features, spatial, None, {})


def save_statistics(file: Path, features: Moments, spatial: Moments | None, meta: dict[str, str]) -> None:
    """Write moments as safetensors with a checksum and the metadata of `Reference`."""
    parts = {"features": features} | ({"spatial": spatial} if spatial is not None else {})
    write_saved(
        file, Saved(flat(parts), {**{key: str(value) for key, value in meta.items()}, "format": FORMAT})
    )


def read_statistics(file: Path) -> Reference:
    """Read a file of `save_statistics`; raises `MetricError` for a foreign, truncated or altered file."""
    tensors, meta = read_saved(file, "the statistics")
    if meta.pop("format", "") != FORMAT:
        raise MetricError(
            f"{file} does not hold statistics of features; create them with flowrace eval --save-stats"
        )
    parts = unflat(tensors)
    if "features" not in parts or not set(parts) <= {"features", "spatial"}:
        raise MetricError(
            f"{file} holds statistics of {', '.join(sorted(parts)) or 'nothing'}, expected features; create "
            "them with flowrace eval --save-stats"
        )
    return Reference(parts["features"], parts.get("spatial"), parts["features"].n, meta)


def flat(parts: dict[str, Moments]) -> dict[str, torch.Tensor]:
    """Return the tensors `<name>/n`, `<name>/mean` and `<name>/scatter` for each name."""
    return {
        f"{part}/{name}": torch.from_numpy(np.array(array))
        for part, moments in parts.items()
        for name, array in moments.to_arrays().items()
    }


def unflat(tensors: dict[str, torch.Tensor]) -> dict[str, Moments]:
    """Return the moments by name from the tensors of `flat`."""
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for key, tensor in tensors.items():
        part, _, name = key.rpartition("/")
        arrays.setdefault(part, {})[name] = tensor.numpy()
    return {part: Moments.from_arrays(state) for part, state in arrays.items()}


def _moments(mean: np.ndarray, covariance: np.ndarray) -> Moments:
    """Return moments of a population of unknown size: those of two samples with this covariance."""
    return Moments.from_arrays(
        {"n": np.asarray(2), "mean": mean.astype(np.float64), "scatter": covariance.astype(np.float64)}
    )


def _names(file: Path) -> list[str]:
    """Return the names of the arrays in an npz file; none if it cannot be read."""
    try:
        with zipfile.ZipFile(file) as content:
            return [name.removesuffix(".npy") for name in content.namelist()]
    except BROKEN:
        return []
