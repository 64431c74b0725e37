"""JSON and TOML of strangers: every fault is a ValueError with a reason."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.files.files import read_toml
from harness.files.parse import DEEPEST, parse_json, parse_toml

DIGITS = "9" * 5000


@pytest.mark.parametrize("levels", [DEEPEST + 1, 990, 200_000])
@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_json, lambda n: "[" * n + "]" * n),
        (parse_json, lambda n: '{"a":' * n + "1" + "}" * n),
        (parse_toml, lambda n: "a = " + "[" * n + "]" * n),
        (parse_toml, lambda n: ".".join(["a"] * min(n, 5000)) + " = 1"),
        (parse_toml, lambda n: "[" + ".".join(["a"] * min(n, 5000)) + "]\n"),
    ],
    ids=["json lists", "json tables", "toml lists", "toml keys", "toml tables"],
)
def test_deep_nesting_is_refused_at_every_depth(
    parse: Callable[[str], object], text: Callable[[int], str], levels: int
) -> None:
    with pytest.raises(ValueError, match=f"nests more than {DEEPEST} levels"):
        parse(text(levels))


def test_nesting_up_to_the_limit_is_read() -> None:
    value = parse_json("[" * DEEPEST + "]" * DEEPEST)
    for _ in range(DEEPEST - 1):
        (value,) = value
    assert value == []


@pytest.mark.parametrize(("parse", "text"), [(parse_json, DIGITS), (parse_toml, f"a = {DIGITS}")])
def test_number_of_thousands_of_digits_is_refused_in_our_words(
    parse: Callable[[str], object], text: str
) -> None:
    with pytest.raises(ValueError, match="it has a number of thousands of digits"):
        parse(text)


def test_decimals_keep_their_digits() -> None:
    assert parse_toml("a = 0.10", parse_float=Decimal) == {"a": Decimal("0.10")}


def test_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("a = " + "[" * 5000 + "]" * 5000)
    with pytest.raises(UserError, match=r"a\.toml is not TOML: it nests more than"):
        read_toml(file)
