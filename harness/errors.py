"""Errors that the command line prints as one sentence."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

LINE_END = re.compile(r"[ \t]*[\r\n]\s*")
ERROR_PREFIX = "error: "
"""Start of the line that the command line prints for a mistake or a failure; `failure_reason` searches logs
for it."""


class UserError(Exception):
    """A mistake that the user can correct. Printed as one sentence, without a traceback; exit code 2."""

    def __init__(self, message: object = "") -> None:
        # Messages of other libraries, which are quoted, may have several lines.
        super().__init__(LINE_END.sub(" ", str(message).strip()))


class ListedError(UserError):
    """A mistake whose message is a list, with a line for each item."""

    def __init__(self, title: str, items: Iterable[str]) -> None:
        super().__init__(title)
        self.args = ("\n".join([title, *items]),)


class RunStopped(Exception):
    """A run that ended before its last step, for example because its loss is not finite.

    Printed as one sentence. The record and the last valid checkpoint are left unchanged.
    """

    exit_code = 1


def first_line(error: object) -> str:
    """Return the first line of a message, or the type of an exception that has none.

    >>> first_line(ValueError("no number\\nin line 3")), first_line(EOFError())
    ('no number', 'EOFError')
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def unknown(kind: str, name: str, known: Iterable[str], *, see: str = "") -> UserError:
    """Return the error for a name that is not registered, with the nearest match.

    >>> str(unknown("method", "rep", ["flow", "repa"]))
    "unknown method 'rep' (known: flow, repa). Did you mean 'repa'?"
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return UserError(
        f"unknown {kind} '{name}' (known: {', '.join(names)}).{hint}" + (f" See: {see}" if see else "")
    )
