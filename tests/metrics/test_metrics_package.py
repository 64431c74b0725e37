"""The package: light imports, exported names and values."""

from __future__ import annotations

import copy
import pickle
import pkgutil
import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest

import metrics
from metrics import MetricError, Value


def test_import_of_the_package_loads_no_heavy_package() -> None:
    heavy = ("torch", "scipy", "numpy", "safetensors")
    code = f"import sys, metrics; print([name for name in {heavy} if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


def test_package_exports_every_name_and_no_submodule_shadows_one() -> None:
    submodules = {module.name for module in pkgutil.iter_modules(metrics.__path__)}
    assert submodules.isdisjoint(metrics.__all__)
    assert set(metrics._MODULE_OF) | {"MetricError", "Value"} == set(metrics.__all__)
    for name in metrics.__all__:
        assert getattr(metrics, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'fid'"):
        _ = metrics.fid


def test_value_converts_to_its_mean() -> None:
    value = Value(2.5, 2.0, 3.5, 7)
    assert float(value) == value.mean == 2.5
    assert (value.low, value.high, value.n) == (2.0, 3.5, 7)
    assert repr(value) == "Value(mean=2.5, low=2.0, high=3.5, n=7)"
    for twin in (copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert (twin.mean, twin.low, twin.high, twin.n) == (2.5, 2.0, 3.5, 7)
    with pytest.raises(FrozenInstanceError):
        value.low = 1.0
    assert (Value(1.0).low, Value(1.0).high) == (None, None)


def test_metric_error_is_a_value_error() -> None:
    assert issubclass(MetricError, ValueError)
