"""Statistics in files of strangers: impossible ones are refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from metrics.distances.frechet import moments_of
from metrics.files.cache import Saved, read_saved, write_saved
from metrics.files.reference_statistics import (
    FORMAT,
    flat,
    read_adm,
    read_statistics,
    save_statistics,
)
from metrics.value import MetricError

MOMENTS = moments_of(np.random.default_rng(0).normal(size=(50, 4)))
TENSORS = flat({"features": MOMENTS})


def written(file: Path, **changed: torch.Tensor) -> Path:
    """Write statistics with some tensors changed, and the checksum that belongs to them."""
    write_saved(file, Saved(TENSORS | {f"features/{k}": v for k, v in changed.items()}, {"format": FORMAT}))
    return file


def test_statistics_of_samples_are_read_back(tmp_path: Path) -> None:
    save_statistics(tmp_path / "a.safetensors", MOMENTS, None, {})
    assert np.array_equal(read_statistics(tmp_path / "a.safetensors").features.covariance, MOMENTS.covariance)


SCATTER = TENSORS["features/scatter"]
NEGATIVE, ONE_SIDED = SCATTER.clone(), SCATTER.clone()
NEGATIVE[2, 2] *= -1
ONE_SIDED[0, 1] += 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scatter": NEGATIVE}, "negative variance"),
        ({"scatter": ONE_SIDED}, "not symmetric"),
        ({"scatter": SCATTER * float("nan")}, "not finite"),
        ({"scatter": SCATTER.float()}, "do not match"),
        ({"scatter": SCATTER[:2]}, "do not match"),
        ({"n": torch.tensor(float("inf"))}, "stored moments must have"),
        ({"n": torch.tensor([1, 2])}, "stored moments must have"),
        ({"n": torch.tensor(-1)}, "do not match"),
        ({"mean": torch.zeros(5, dtype=torch.float64)}, "do not match"),
    ],
)
def test_impossible_moments_are_refused(
    tmp_path: Path, changed: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(MetricError, match=message):
        read_statistics(written(tmp_path / "a.safetensors", **changed))


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16])
def test_types_that_numpy_lacks_are_refused(tmp_path: Path, kind: torch.dtype) -> None:
    from safetensors.torch import save_file

    file = tmp_path / "a.safetensors"
    save_file({name: x.to(kind) for name, x in TENSORS.items()}, file, {"format": FORMAT, "sha256": "0" * 64})
    with pytest.raises(MetricError, match=r"a\.safetensors is missing, truncated or altered"):
        read_statistics(file)
    with pytest.raises(MetricError, match="truncated or altered"):
        read_saved(file, "the features")


@pytest.mark.parametrize("parts", [{}, {"spatial": MOMENTS}, {"features": MOMENTS, "more": MOMENTS}])
def test_statistics_without_features_are_refused(tmp_path: Path, parts: dict) -> None:
    file = tmp_path / "a.safetensors"
    write_saved(file, Saved(flat(parts), {"format": FORMAT}))
    with pytest.raises(MetricError, match=r"holds statistics of .*, expected features"):
        read_statistics(file)


def test_negative_variance_in_adms_file_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", mu=np.zeros(3), sigma=-np.eye(3))
    with pytest.raises(MetricError, match=r"a\.npz: mu and sigma are not valid .*negative variance"):
        read_adm(tmp_path / "a.npz")
