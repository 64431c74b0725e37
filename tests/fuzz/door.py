"""A door: one kind of input, and the functions that fuzz it."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings

from harness.cli import main as cli
from harness.errors import UserError
from tests.fuzz.guards import Broke, run_case
from tests.fuzz.mutations import Edit, edits, mutated

SLOW = 1000
"""Cases of each door in the slow suite."""
Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Door:
    """One kind of input: valid files, and the function that reads them."""

    name: str
    files: Callable[[], Files]
    read: Callable[[Path], Iterable[float]]
    """Reads the folder with the files, and returns the numbers that must be finite."""
    text: bool = False
    """The files are text, whose words are replaced too."""
    cases: int = 30
    """Cases in the fast suite."""
    only: tuple[str, ...] = ("",)
    """Ends of the names of the files that are mutated; every name without."""


def fuzz(door: Door, cases: int) -> None:
    """Read mutated files of a door; the valid ones are accepted."""
    files = dict(door.files())
    run_case(files, door.read, valid=True)

    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(changes=edits(door.text))
    def survives(changes: list[Edit]) -> None:
        chosen = {name: content for name, content in files.items() if name.endswith(door.only)}
        run_case(files | mutated(chosen, changes), door.read)

    survives()


def command(*words: object) -> list[float]:
    """Run the command line in this process, and return the numbers of what it prints as JSON.

    Raises `UserError` for exit code 2, and `Broke` for a traceback or another code than 0 and 1.
    """
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["flowrace", *map(str, words)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = before
    message = err.getvalue()
    if "Traceback" in message or code not in (0, 1, 2):
        raise Broke(f"exit code {code}: {message[-3000:]}")
    if code == 2:
        raise UserError(message)
    return _numbers(json.loads(out.getvalue(), parse_constant=_refuse)) if "--json" in words else []


def _refuse(constant: str) -> None:
    raise Broke(f"the output holds {constant}, which is no JSON")


# Any: JSON.
def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [number for one in inner for number in _numbers(one)]
    return [float(value)] if isinstance(value, float) else []
