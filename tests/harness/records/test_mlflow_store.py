"""MLflow stores that cannot be opened."""

from __future__ import annotations

import sys

import pytest

from harness.errors import UserError
from harness.records.mlflow_store import create_store, shown


def test_missing_database_driver_is_reported_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "MySQLdb", None)
    with pytest.raises(UserError, match=r"^cannot mirror into mysql://localhost/x: .*MySQLdb"):
        create_store("mysql://localhost/x")


def test_address_that_cannot_be_read_is_reported_in_one_sentence() -> None:
    with pytest.raises(UserError, match=r"^http://\[::1:5000 is no address of a store"):
        create_store("http://[::1:5000")


@pytest.mark.parametrize("name", ["password", "PWD", "sslpassword", "access_token", "api_key", "user"])
def test_settings_that_are_named_as_secrets_are_not_shown(name: str) -> None:
    assert shown(f"mysql://host/db?{name}=x&port=3&{name}=y") == "mysql://host/db?port=3"
    assert shown(f"cannot reach mysql://host/db?a=1;{name}=x/y z") == "cannot reach mysql://host/db?a=1 z"
    assert shown(f"https://host/?{name}=x#top") == "https://host/#top"
