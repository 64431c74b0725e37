"""MLflow stores: which one, created once, written by one process at a time."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.errors import UserError

DEFAULT_URI = "sqlite:///mlflow.db"
SQLITE = "sqlite:///"
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",
    "GIT_PYTHON_REFRESH": "quiet",
}


def available() -> bool:
    """Whether MLflow is installed."""
    return find_spec("mlflow") is not None


def store_uri(uri: str | None = None) -> str:
    """The store to use: the one asked for, else `MLFLOW_TRACKING_URI`, else `mlflow.db` in the working
    directory.

    An sqlite store is told by its absolute path.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).resolve()}" if uri.startswith(SQLITE) else uri


def create_store(uri: str | None = None) -> str:
    """Create the store unless it is there and say where it is; to be called by one process before workers
    start.

    Raises `UserError` when MLflow is not installed or the store cannot be reached.
    """
    with open_store(uri) as client:
        client.search_experiments(max_results=1)
    return shown(store_uri(uri))


@contextmanager
def open_store(uri: str | None) -> Iterator[Any]:
    """An `MlflowClient` of a store, an sqlite one locked against other processes; errors become
    `UserError`."""
    if not available():
        raise UserError("MLflow is not installed: pip install mlflow, or use --no-track")
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    for name in ("mlflow", "alembic"):  # what goes wrong arrives as an exception
        logging.getLogger(name).setLevel(logging.CRITICAL)
    found = store_uri(uri)
    try:
        with _alone(found) if found.startswith(SQLITE) else nullcontext():
            yield MlflowClient(tracking_uri=found)
    except (MlflowException, SQLAlchemyError, ImportError, OSError) as error:  # ImportError: of a driver
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(shown(f"cannot mirror into {found}: {reason}")) from error


@contextmanager
def creating(uri: str | None) -> Iterator[None]:
    """Alone among this machine's processes with looking for what is not there and creating it; a server has
    no such lock."""
    from harness.files.cache import cache_dir
    from harness.files.files import locked

    with locked(cache_dir("stores") / hashlib.sha256(store_uri(uri).encode()).hexdigest()[:16]):
        yield


def artifact_folder(uri: str | None, experiment: str) -> str | None:
    """Where artifacts of an experiment lie: beside an sqlite database, wherever the command was called; else
    the server says."""
    found = store_uri(uri)
    if not found.startswith(SQLITE):
        return None
    return (Path(found.removeprefix(SQLITE)).parent / "mlruns" / experiment).as_uri()


def shown(uri: str) -> str:
    """A URI without the name and password that it may hold."""
    return re.sub(r"//[^/@]*@", "//", uri)


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Hold the lock of an sqlite store: several processes that create one at once break it."""
    from harness.files.files import locked

    file = Path(uri.removeprefix(SQLITE))
    file.parent.mkdir(parents=True, exist_ok=True)
    with locked(file):
        yield
