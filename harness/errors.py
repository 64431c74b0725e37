"""What a user can get wrong, said in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

ERROR_PREFIX = "error: "
"""How the command line starts the line that names a mistake or a failure; `failure_reason` looks for it in
logs."""


class UserError(Exception):
    """A mistake the user can mend. Printed as one sentence, without a traceback; exit code 2."""


class RunStopped(Exception):
    """A run that ended before its last step for a reason of its own (a loss that is not finite, say).

    Printed as one sentence. The record and the last good checkpoint stay as they are.
    """

    exit_code = 1


def unknown(kind: str, name: str, known: Iterable[str], *, see: str = "") -> UserError:
    """The error for a name that is not among the known ones, with the nearest match.

    >>> str(unknown("method", "rep", ["flow", "repa"]))
    "unknown method 'rep' (known: flow, repa). Did you mean 'repa'?"
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return UserError(
        f"unknown {kind} '{name}' (known: {', '.join(names)}).{hint}" + (f" See: {see}" if see else "")
    )
