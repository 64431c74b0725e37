"""Arguments and options of the commands that run a study."""

from __future__ import annotations

from pathlib import Path

import click

from harness.config.options import Command, set_option


def study_options(command: Command) -> Command:
    """Add the study, `--out` and `--set` to a command, which receives `source`, `out` and `overrides`."""
    command = set_option(help="Set a field of every run's spec; may be repeated.")(command)
    command = click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder of the study (default: runs/<name of the study>).",
    )(command)
    return click.argument("source", metavar="STUDY|FILE.toml")(command)
