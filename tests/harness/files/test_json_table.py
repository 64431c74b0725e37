"""JSON tables that commands add rows to."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import UserError
from harness.files.json_table import adding_to, kept, write_table


def test_kept_rows_are_those_of_the_same_protocol(tmp_path: Path) -> None:
    file = tmp_path / "encoders.json"
    assert kept(file, {"n": 1}, "encoders") == {}
    with adding_to(file):
        write_table(file, {"protocol": {"n": 1}, "encoders": {"a": 2}})
    assert kept(file, {"n": 1}, "encoders") == {"a": 2}
    assert kept(file, {"n": 2}, "encoders") == {}


@pytest.mark.parametrize("content", ["{", "[]", '{"protocol": {"n": 1}}'])
def test_kept_rejects_a_file_that_is_not_a_table(tmp_path: Path, content: str) -> None:
    file = tmp_path / "encoders.json"
    file.write_text(content)
    with pytest.raises(UserError, match=r"encoders\.json is not a table of encoders; move it away"):
        kept(file, {"n": 1}, "encoders")


def test_write_table_rejects_numbers_that_are_not_finite(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_table(tmp_path / "a.json", {"value": float("nan")})
    assert list(tmp_path.iterdir()) == []
