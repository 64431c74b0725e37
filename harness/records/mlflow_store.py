"""MLflow stores: their choice, creation and locks."""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from harness.errors import UserError, first_line

DEFAULT_URI = "sqlite:///mlflow.db"
SQLITE = "sqlite:///"
# A password may contain a slash. In the address of a server, what follows a port is a path.
_USER_OF_DATABASE = re.compile(r"(?<!http:)(?<!https:)//(?:[^/?#]*|[^:/]*:[^@]*)@", re.I)
_USER_OF_SERVER = re.compile(r"(https?://)(?:[^/?#]*|[^:/?#@\[]*:(?![0-9]*(?:[/?#]|:?\s|$))[^@]*)@", re.I)
_SECRET = (
    r"(?:[\w.-]*(?:password|passwd|pwd|token|secret|api_?key)[\w.-]*|user(?:name)?|odbc_connect)=[^&#\s]*"
)
_FIRST_SECRET = re.compile(rf"\?{_SECRET}(&?)", re.I)
_LATER_SECRET = re.compile(rf"[&;]{_SECRET}", re.I)
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",
    "GIT_PYTHON_REFRESH": "quiet",
}


def available() -> bool:
    """Return whether MLflow is installed."""
    return find_spec("mlflow") is not None


def store_uri(uri: str | None = None) -> str:
    """Return `uri`, else `MLFLOW_TRACKING_URI`, else `mlflow.db` in the working directory.

    The path of an sqlite store is made absolute.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).resolve()}" if uri.startswith(SQLITE) else uri


def create_store(uri: str | None = None) -> str:
    """Create the store if it does not exist, and return its URI; one process calls it before workers start.

    Raises `UserError` if MLflow is not installed or the store cannot be reached.
    """
    with open_store(uri) as client:
        client.search_experiments(max_results=1)
    return shown(store_uri(uri))


@contextmanager
def open_store(uri: str | None) -> Iterator[Any]:
    """Yield an `MlflowClient` of a store; an sqlite store is locked against other processes.

    MLflow's errors are raised as `UserError`.
    """
    if not available():
        raise UserError("MLflow is not installed: pip install mlflow, or use --no-track")
    quiet_mlflow()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    store = store_uri(uri)
    if not is_address(store):
        raise UserError(f"{shown(store)} is no address of a store; expected for example http://[::1]:5000")
    try:
        with _locked_database(store) if store.startswith(SQLITE) else nullcontext():
            _check_schema(store)
            yield MlflowClient(tracking_uri=store)
    # ImportError is raised for a missing database driver.
    except (MlflowException, SQLAlchemyError, ImportError, OSError) as error:
        raise UserError(shown(f"cannot mirror into {store}: {_reason(error)}")) from error


def _reason(error: BaseException) -> str:
    """Return why a store failed: the error of the database if it is the cause, else that of MLflow."""
    cause: BaseException | None = error
    while cause is not None:
        # SQLAlchemy keeps the database's own error; MLflow may begin with advice about SQLAlchemy.
        if text := str(getattr(cause, "orig", None) or "").strip():
            return text.splitlines()[0]
        cause = cause.__cause__ or cause.__context__
    return first_line(error)


def quiet_mlflow() -> None:
    """Set up MLflow without telemetry and log lines; raises `UserError` if it is not installed."""
    if not available():
        raise UserError("MLflow is not installed: pip install mlflow")
    set_environment()
    # Its import sets the levels of its loggers, so they are set afterwards.
    importlib.import_module("mlflow")
    # Errors arrive as exceptions; logging them too would print them twice.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def set_environment() -> None:
    """Set the environment variables that keep MLflow quiet, where they are not set."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


def schema_of(file: Path) -> str | None:
    """Return the schema revision of an sqlite store, which is only read; None if it has none.

    Raises `sqlite3.DatabaseError` for a file that is no database.
    """
    with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as database:
        tables = {name for (name,) in database.execute("select name from sqlite_master where type = 'table'")}
        if "alembic_version" not in tables:
            return None
        found = database.execute("select version_num from alembic_version").fetchone()
    return None if found is None else str(found[0])


def schema_state(schema: str | None) -> Literal["current", "earlier", "unknown"]:
    """Return how a schema revision relates to that of the installed MLflow; `unknown` if it is later."""
    heads, known = _schema_revisions()
    if schema in heads:
        return "current"
    return "earlier" if schema in known else "unknown"


@cache
def _schema_revisions() -> tuple[frozenset[str], frozenset[str]]:
    """Return the current and all revisions of the installed MLflow, which are in 50 modules."""
    import mlflow
    from alembic.script import ScriptDirectory

    migrations = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    known = (script.revision for script in migrations.walk_revisions())
    return frozenset(migrations.get_heads()), frozenset(known)


@contextmanager
def creating(uri: str | None) -> Iterator[None]:
    """Hold a lock on this machine while an experiment or run is looked up and created if missing.

    Servers do not offer such a lock.
    """
    from harness.files.cache import cache_dir
    from harness.files.files import locked

    with locked(cache_dir("stores") / hashlib.sha256(store_uri(uri).encode()).hexdigest()[:16]):
        yield


def artifact_folder(uri: str | None, experiment: str) -> str | None:
    """Return where artifacts of an experiment go: next to an sqlite database; None lets a server choose."""
    store = store_uri(uri)
    if not store.startswith(SQLITE):
        return None
    return (Path(store.removeprefix(SQLITE)).parent / "mlruns" / experiment).as_uri()


def is_address(uri: str) -> bool:
    """Return whether the host of a URI can be read.

    >>> is_address("http://[::1]:5000"), is_address("http://[::1:5000"), is_address("sqlite:///mlflow.db")
    (True, False, True)
    """
    try:
        urlsplit(uri)
    except ValueError:
        return False
    return True


def shown(uri: str) -> str:
    """Return a URI, or a message with one, without user name, password, and settings that are named as one.

    >>> shown("https://ann:p@ss@host/x"), shown("postgresql://ann:a/b@host/db")
    ('https://host/x', 'postgresql://host/db')
    >>> shown("https://host:5000/a@b"), shown("postgresql://host/db?user=ann&password=x&port=3")
    ('https://host:5000/a@b', 'postgresql://host/db?port=3')
    """
    uri = _USER_OF_SERVER.sub(r"\1", _USER_OF_DATABASE.sub("//", uri))
    uri = _LATER_SECRET.sub("", uri)
    return _FIRST_SECRET.sub(lambda found: "?" if found[1] else "", uri)


def _check_schema(store: str) -> None:
    """Raise `UserError` if another MLflow version wrote an sqlite store, since opening would upgrade it."""
    file = Path(store.removeprefix(SQLITE))
    if not store.startswith(SQLITE) or not file.is_file() or file.stat().st_size == 0:
        return
    try:
        schema = schema_of(file)
    except sqlite3.DatabaseError as error:
        raise UserError(f"cannot mirror into {store}: {error}") from error
    if schema is not None and schema_state(schema) != "current":
        raise UserError(
            f"cannot mirror into {store}: another version of MLflow wrote it (schema {schema}), and that "
            f"version could not read it any more; choose another store, or upgrade it: cp {file} "
            f"{file.name}.backup && mlflow db upgrade {store}"
        )


@contextmanager
def _locked_database(uri: str) -> Iterator[None]:
    """Hold the lock of an sqlite store, which would break if several processes created it at once."""
    from harness.files.files import locked

    file = Path(uri.removeprefix(SQLITE))
    file.parent.mkdir(parents=True, exist_ok=True)
    with locked(file):
        yield
