"""MLflow stores that cannot be opened."""

from __future__ import annotations

import sys

import pytest

from harness.errors import UserError
from harness.records.mlflow_store import create_store


def test_missing_database_driver_is_reported_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "MySQLdb", None)
    with pytest.raises(UserError, match=r"^cannot mirror into mysql://localhost/x: .*MySQLdb"):
        create_store("mysql://localhost/x")
