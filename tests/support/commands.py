"""Commands of flowrace in this process."""

from __future__ import annotations

from click.testing import CliRunner, Result

from harness.cli.main import cli


def flowrace(*words: object) -> Result:
    """Run a command; its output, exit code and exception are in the result."""
    return CliRunner().invoke(cli, [str(word) for word in words])
