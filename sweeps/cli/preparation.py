"""The preparation of a study's store and report, in a thread that works while the runs train."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from pathlib import Path

import click

from harness.errors import UserError
from sweeps.launch.options import LaunchOptions

Store = Callable[[], str | None]
"""Waits for the store of a study, and returns its address; None without one."""
PAGES = "reports.pages.page"
"""The module of the report, which imports what draws its figures."""


def prepare(
    track: str | None, launch: LaunchOptions, *, no_track: bool = False, no_report: bool = False
) -> Store:
    """Create the store of a study, and import what its report needs, while its runs train.

    A store that exists or that `--track` names is opened before anything starts, because its faults come
    first. Nothing is left to a thread if runs have several processes or another launcher.
    """
    alone = launch.launcher == "local" and launch.processes == 1
    later = alone and not no_track and _is_new(track)
    uri = None if no_track or later else create_store(track)
    if not alone:
        return lambda: uri
    worker = ThreadPoolExecutor(1, "preparation")
    created = worker.submit(_created, track) if later else None
    if not no_report:
        worker.submit(import_module, PAGES)
    # Its tasks are finished, even if the command ends before them.
    worker.shutdown(wait=False)

    @cache
    def store() -> str | None:
        return uri if created is None else _or_none(created.result)

    return store


def no_store() -> str | None:
    """Return None: nothing is tracked."""
    return None


def create_store(track: str | None) -> str | None:
    """Create the store before anything starts. A failure is an error only if `--track` named the store."""
    return _created(track) if track is not None else _or_none(lambda: _created(track))


def _created(track: str | None) -> str:
    from harness.records.mlflow_store import create_store, store_uri

    create_store(track)
    return store_uri(track)


def _or_none(created: Callable[[], str]) -> str | None:
    """Return the address of a store; None, with a line that states why, if it cannot be created."""
    try:
        return created()
    except UserError as error:
        click.echo(f"not tracked: {error}", err=True)
        return None


def _is_new(track: str | None) -> bool:
    """Return whether the store is the default one on this machine, and does not exist yet."""
    from harness.records.mlflow_store import SQLITE, available, set_environment, store_uri

    uri = store_uri(track)
    if track is not None or not available() or not uri.startswith(SQLITE):
        return False
    # Runs that start meanwhile have the same environment.
    set_environment()
    return not Path(uri.removeprefix(SQLITE)).exists()
