"""What every command about a race takes: folders of runs, and what is asked of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def race_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """DIR..., --metric, --target, --baseline and --published, as `read_race` and the pages take them."""
    for option in (
        click.option(
            "--published",
            multiple=True,
            metavar="METHOD[:SIZE[:METRIC]]",
            help="Curves of papers in a panel of their own, as repa:XL:FID; several may be given.",
        ),
        click.option(
            "--baseline",
            help="The arm to compare with: a method or a label. Default: the study's, else flow.",
        ),
        click.option(
            "--target",
            type=float,
            help="The value to reach. Default: the study's, else what every run reaches.",
        ),
        click.option(
            "--metric",
            help="As in the record, fd:local say. Default: the study's, else the first evaluated.",
        ),
        click.argument(
            "directories", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path)
        ),
    ):
        command = option(command)
    return command
