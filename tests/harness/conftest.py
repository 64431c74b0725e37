"""Fixtures of the tests of harness/."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def uri(tmp_path: Path, new_store: Callable[[Path], str]) -> str:
    """Return the URI of an empty MLflow store."""
    return new_store(tmp_path / "store" / "mlflow.db")
