"""Names that become parts of paths, for example of studies and runs in files that strangers wrote."""

from __future__ import annotations

from harness.errors import UserError
from harness.files.terminal import shown

LONGEST = 200
"""Bytes of a name; file systems allow 255, of which suffixes take some."""


def check_name(name: str, where: str) -> str:
    """Return a name that is one component of a path.

    Raises `UserError`, naming `where`, for a name that is empty, leads to another folder, is too long, or has
    control characters.
    """
    if fault := _fault(name):
        raise UserError(f"{where} = '{shown(name)[:80]}' {fault}; use letters, digits, '.', '_' and '-'")
    return name


def _fault(name: str) -> str:
    if not name:
        return "is empty"
    if name in (".", "..") or "/" in name or "\\" in name:
        return "is a path"
    if shown(name) != name or "\n" in name or "\t" in name:
        return "has control characters"
    if len(name.encode()) > LONGEST:
        return f"is longer than {LONGEST} bytes"
    return ""
