"""flowrace eval, called in this process: what it prints as JSON, or the sentence that refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from harness.cli.evaluate import evaluate as command
from harness.errors import UserError


def scored(*words: Any) -> dict[str, Any]:
    result = CliRunner().invoke(command, [*map(str, words), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(says: str, *words: Any) -> None:
    with pytest.raises(UserError, match=says):
        scored(*words)
