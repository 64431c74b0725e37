"""MLflow stores, for reading: a temporary copy is read, so that no byte of the store changes.

MLflow upgrades a database of an earlier version when it opens it, and that version cannot read it afterwards.
A store as a folder (`mlruns`) gets new files when it is opened. Both happen to the copy only.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from harness.errors import UserError, first_line
from harness.records.mlflow_store import SQLITE, quiet_mlflow, schema_of, schema_state

LEFT_EMPTY = ("artifacts", "models", "traces")
"""Folders of a file store whose content is not copied. MLflow finds a run by its `artifacts`."""
FILE_STORE_SWITCH = "MLFLOW_ALLOW_FILE_STORE"
WAIT_SECONDS = 5.0
"""The time for which a database that another process is writing may stay locked."""


def is_file_store(folder: Path) -> bool:
    """Return whether a folder is an MLflow store: it holds experiments, each with a `meta.yaml`."""
    return any(_names_experiment(file) for file in sorted(folder.glob("*/meta.yaml"))[:10])


@contextmanager
def copied_database(file: Path) -> Iterator[Any]:
    """Yield an `MlflowClient` of a copy of an sqlite store, upgraded if another MLflow version wrote it.

    Raises `UserError` if the file is no store, or if the installed MLflow cannot upgrade the copy.
    """
    quiet_mlflow()
    with tempfile.TemporaryDirectory(prefix="flowrace-") as folder:
        copy = Path(folder) / "mlflow.db"
        _copy_database(file, copy)
        _upgrade(file, copy)
        from mlflow import MlflowClient

        yield MlflowClient(tracking_uri=f"{SQLITE}{copy}")


@contextmanager
def copied_file_store(store: Path) -> Iterator[Any]:
    """Yield an `MlflowClient` of a copy of a file store, without its artifacts.

    Raises `UserError` that names the command for the conversion if the installed MLflow cannot read it.
    """
    quiet_mlflow()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    before = os.environ.get(FILE_STORE_SWITCH)
    with tempfile.TemporaryDirectory(prefix="flowrace-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        copy = Path(folder) / "mlruns"
        try:
            shutil.copytree(store, copy, ignore=_not_copied)
            os.environ[FILE_STORE_SWITCH] = "true"
            yield MlflowClient(tracking_uri=copy.as_uri())
        except (MlflowException, shutil.Error, OSError) as error:
            raise UserError(
                f"cannot read the MLflow file store {store}: {first_line(error)}; convert it: mlflow "
                f"migrate-filestore --source {store} --target sqlite:///mlflow.db"
            ) from error
        finally:
            os.environ.pop(FILE_STORE_SWITCH, None)
            os.environ.update({} if before is None else {FILE_STORE_SWITCH: before})


def _names_experiment(file: Path) -> bool:
    try:
        return "artifact_location" in file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _not_copied(folder: str, names: list[str]) -> list[str]:
    return names if Path(folder).name in LEFT_EMPTY else []


def _copy_database(file: Path, copy: Path) -> None:
    """Copy a database in a consistent state, without locks or files next to the original."""
    # A journal belongs to the content: of a process that is writing, or of one that died.
    companions = [file.with_name(file.name + ending) for ending in ("-wal", "-journal")]
    journals = [path for path in companions if path.exists()]
    try:
        if not journals and _copied_unlocked(file, copy):
            return
        copy.unlink(missing_ok=True)
        for path in (file, *journals):
            shutil.copyfile(path, copy.with_name(copy.name + path.name.removeprefix(file.name)))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error


def _copied_unlocked(file: Path, copy: Path) -> bool:
    """Copy by sqlite's own backup; return False if the database cannot be opened without a write."""
    with open(file, "rb") as content:
        header = content.read(20)
    # Bytes 18 and 19 are 2 for a database with a write-ahead log, which even a reader would create.
    immutable = "&immutable=1" if header[18:20] == b"\x02\x02" else ""
    uri = f"file:{quote(os.fsencode(file.resolve()))}?mode=ro{immutable}"
    try:
        original = sqlite3.connect(uri, uri=True, timeout=WAIT_SECONDS)
        with closing(original) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
    except sqlite3.OperationalError:
        return False
    except sqlite3.DatabaseError as error:
        raise UserError(f"cannot read {file}: it is not an sqlite database ({error})") from error
    return True


def _upgrade(file: Path, copy: Path) -> None:
    """Upgrade the copy to the schema of the installed MLflow; raises `UserError` if that is impossible."""
    import mlflow
    from mlflow.db import upgrade

    try:
        schema = schema_of(copy)
    except sqlite3.DatabaseError as error:
        raise UserError(f"cannot read {file}: it is not an sqlite database ({error})") from error
    state = schema_state(schema)
    if schema is None:
        raise UserError(f"cannot read {file}: it is an sqlite database, but not an MLflow store")
    if state == "current":
        return
    about = f"{file} was written by another version of MLflow (schema {schema})"
    if state == "unknown":
        raise UserError(
            f"{about}, which MLflow {mlflow.__version__} does not know; install the MLflow that wrote it, or "
            "a later one: pip install -U mlflow"
        )
    try:
        assert upgrade.callback is not None
        upgrade.callback(f"{SQLITE}{copy}")
    # Migrations raise errors of many libraries, and each means that the copy is not readable.
    except Exception as error:
        raise UserError(
            f"{about}, and MLflow {mlflow.__version__} cannot upgrade a copy of it ({first_line(error)}); "
            f"try it by hand: cp {file} copy.db && mlflow db upgrade sqlite:///copy.db"
        ) from error
