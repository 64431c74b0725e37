"""Command-line options that several commands share, in harness, sweeps and reports."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import click

# A function or a click command; a decorator returns the type that it was given.
Command = TypeVar("Command", bound=Callable[..., object])

JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")

STEP_OPTION = click.option("--step", type=int, help="Step of the checkpoint (default: the newest one).")

# The names in harness/exchange/layouts.py, which imports torch.
LAYOUTS = ("auto", "sit", "repa", "sra", "self-flow", "reg", "irepa", "mmdit", "dit")
"""Layouts of released weights."""


def examples(*lines: str, then: str = "") -> str:
    """Return the epilog of a command: examples that click does not wrap, and a sentence after them.

    >>> examples("flowrace status runs/digits")
    '\\x08\\nExample:\\n  flowrace status runs/digits'
    """
    block = "\n".join(["\b", "Example:", *(f"  {line}" for line in lines)])
    return f"{block}\n\n{then}" if then else block


def set_option(
    help: str = "Set a field of the spec, for example train.steps=100; may be repeated.",
    metavar: str = "A.B=VALUE",
) -> Callable[[Command], Command]:
    """Return the option `--set`, which a command receives as `overrides`."""
    return click.option("--set", "overrides", multiple=True, metavar=metavar, help=help)


def warn_of(sentences: Iterable[str]) -> None:
    """Print warnings on standard error, one a line."""
    for sentence in sentences:
        click.echo(f"warning: {sentence}", err=True)


def layout_option(help: str) -> Callable[[Command], Command]:
    """Return the option `--layout` of released weights."""
    return click.option("--layout", type=click.Choice(LAYOUTS), default="auto", show_default=True, help=help)


def track_options(command: Command) -> Command:
    """Add `--track URI` and `--no-track`, which choose the MLflow store that receives finished runs."""
    command = click.option("--no-track", is_flag=True, help="Do not mirror runs into MLflow.")(command)
    return click.option("--track", metavar="URI", help="MLflow store (default: sqlite:///mlflow.db).")(
        command
    )
