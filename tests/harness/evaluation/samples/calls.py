"""Calls of `flowrace eval` in process, for tests: its JSON output or its error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from sweeps.cli.evaluate import evaluate as command
from harness.errors import UserError


def scored(*words: Any) -> dict[str, Any]:
    """Return the JSON output of the command."""
    result = CliRunner().invoke(command, [*map(str, words), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def assert_rejected(message: str, *words: Any) -> None:
    """Assert that the command raises a `UserError` with this message, a regular expression."""
    with pytest.raises(UserError, match=message):
        scored(*words)
