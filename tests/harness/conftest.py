"""Fixtures of the tests of harness/."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """Return the address of a new MLflow store."""
    return f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}"
