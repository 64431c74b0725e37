"""Cells of CSV files: a spreadsheet would run a name that begins like a formula, so it gets an apostrophe.

A name that is such a cell already gets one more, so that two names never have the same cell.
"""

from __future__ import annotations

# Any: the values of a table.
from typing import Any

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters of cells that spreadsheets treat as formulas (OWASP, CSV injection)."""


def inert(value: Any) -> Any:
    """Return a value for a cell; a text that a spreadsheet would run gets an apostrophe, and numbers none.

    >>> inert("=1+1"), inert("-0.5"), inert("repa"), inert(-0.5)
    ("'=1+1", '-0.5', 'repa', -0.5)
    >>> inert("'=1+1")
    "''=1+1"
    """
    return f"'{value}" if isinstance(value, str) and _is_formula(value.lstrip("'")) else value


def plain(cell: str) -> str:
    """Return the text of which `inert` made a cell.

    >>> plain("'=1+1"), plain("'tis")
    ('=1+1', "'tis")
    """
    return cell[1:] if cell.startswith("'") and _is_formula(cell.lstrip("'")) else cell


def _is_formula(text: str) -> bool:
    if not text.startswith(FORMULA):
        return False
    try:
        float(text)
    except ValueError:
        return True
    return False
