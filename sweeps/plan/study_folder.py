"""A study on the command line, and its folder: one process at a time works in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from harness.errors import UserError
from harness.files.files import take_lock

SEARCH = "tune.toml"
"""The study that `flowrace tune` searches in a folder."""


def study_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What a command about a study takes: the study, where it goes, and settings that all its runs share."""
    for option in (
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="A.B=VALUE",
            help="Set a field of every run's spec; may be repeated.",
        ),
        click.option(
            "--out",
            type=click.Path(path_type=Path, file_okay=False),
            help="Its folder (default: runs/<name of the study>).",
        ),
        click.argument("source", metavar="STUDY|FILE.toml"),
    ):
        command = option(command)
    return command


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Hold a study's folder against a second sweep; raises `UserError` naming the one that holds it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = take_lock(directory / "sweep.lock", str(directory))
    except OSError as error:
        raise UserError(f"cannot write the folder {directory}: {error.strerror}") from error
    with lock:
        yield
