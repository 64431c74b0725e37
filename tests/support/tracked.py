"""MLflow stores for tests: copies of an empty one, and runs as other tools log them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from harness.files.files import locked

if TYPE_CHECKING:
    from mlflow import MlflowClient


def copy_empty_store(cache: Path, file: Path) -> str:
    """Copy MLflow's empty sqlite store to a file and return its URI; creating one takes 50 migrations."""
    from harness.records.mlflow_store import create_store

    empty = cache / "mlflow.db"
    with locked(empty):
        if not empty.exists():
            create_store(f"sqlite:///{cache / 'new.db'}")
            (cache / "new.db").rename(empty)
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(empty, file)
    return f"sqlite:///{file}"


def logged(
    client: MlflowClient,
    experiment: str,
    params: Mapping[str, object],
    metrics: Iterable[tuple[str, float, int]],
    status: str = "FINISHED",
    tags: Mapping[str, str] | None = None,
) -> str:
    """Log a run with its metrics (name, value, step), and return its id."""
    from mlflow.entities import Metric, Param

    run = client.create_run(experiment, tags=tags).info.run_id
    client.log_batch(
        run,
        metrics=[Metric(name, value, 0, step) for name, value, step in metrics],
        params=[Param(name, str(value)) for name, value in params.items()],
    )
    client.set_terminated(run, status)
    return run
