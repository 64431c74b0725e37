"""JSON and TOML from files that strangers may have written: every fault of the text is a `ValueError`."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from functools import partial

# Any: the values of a file.
from typing import Any

DEEPEST = 100
"""Levels of tables and lists that a file may nest; code that walks its values is recursive."""
TOO_DEEP = f"it nests more than {DEEPEST} levels"


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text. Raises `ValueError`, with the reason, for any other text."""
    value = _parsed(partial(json.loads, text))
    # Most files have too few tables and lists to be nested too deeply, and need no walk.
    return value if _brackets(text) < DEEPEST else checked_depth(value)


def _brackets(text: str | bytes) -> int:
    if isinstance(text, bytes):
        return text.count(b"[") + text.count(b"{")
    return text.count("[") + text.count("{")


# Any: the type that numbers with a decimal point get.
def parse_toml(text: str, parse_float: Callable[[str], Any] = float) -> dict[str, Any]:
    """Return the table of a TOML text. Raises `ValueError`, with the reason, for any other text."""
    return checked_depth(_parsed(partial(tomllib.loads, text, parse_float=parse_float)))


def _parsed(parse: Callable[[], Any]) -> Any:
    try:
        return parse()
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    except ValueError as error:
        # Python's own message advises programs.
        long = "integer string conversion" in str(error)
        raise (ValueError("it has a number of thousands of digits") if long else error) from error


def checked_depth(value: Any) -> Any:
    """Return a value. Raises `ValueError` if its tables and lists are nested too deeply."""
    level = _tables([value])
    for _ in range(DEEPEST):
        level = [table for outer in level for table in _tables(_inside(outer))]
        if not level:
            return value
    raise ValueError(TOO_DEEP)


def _inside(value: dict[str, Any] | list[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def _tables(values: list[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, dict | list)]
