"""MLflow stores as people have them: of other versions, as folders, with odd paths and values."""

from __future__ import annotations

import hashlib
import math
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.records.mlflow_store import create_store
from reports.audit.audit import audit_claim
from reports.audit.inputs import mlflow_runs
from reports.audit.inputs.read import read_logs
from tests.reports.audits import claim, falling
from tests.support.tracked import logged

NewStore = Callable[[Path], str]
EARLIER = "acf3f17fdcc7"
"""The schema of MLflow 2.9.2."""
SPEEDS = {"old": 1.0, "new": 2.2}
GRID = range(20_000, 400_001, 20_000)


def filled(uri: str, experiment: str = "theirs", bad: float | None = None) -> str:
    """Log three runs of two methods; `bad` is the value of new seed 1 at step 60000."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    group = client.create_experiment(experiment)
    for seed in range(3):
        for method, speed in SPEEDS.items():
            curve = [("fid", falling(speed * (1 + 0.01 * seed))(step), step) for step in GRID]
            if bad is not None and (method, seed) == ("new", 1):
                curve[2] = ("fid", bad, 60_000)
            logged(client, group, {"method": method, "seed": seed}, curve)
    return uri


def earlier_store(file: Path) -> Path:
    """Write the tables of an MLflow 2.9.2 store that hold runs, with the runs of `filled`."""
    from mlflow.store.db.base_sql_model import Base
    from mlflow.store.tracking.dbmodels.initial_models import Base as InitialBase
    from sqlalchemy import create_engine

    assert Base is not InitialBase
    from alembic import command
    from mlflow.store.db.utils import _get_alembic_config

    uri = f"sqlite:///{file}"
    engine = create_engine(uri)
    InitialBase.metadata.create_all(engine)
    command.upgrade(_get_alembic_config(uri), EARLIER)
    engine.dispose()
    with closing(sqlite3.connect(file)) as database, database:
        database.execute(
            "insert into experiments (experiment_id, name, lifecycle_stage) values (1, 'x', 'active')"
        )
        for seed in range(3):
            for method, speed in SPEEDS.items():
                run = f"{method}{seed}".ljust(32, "0")
                database.execute(
                    "insert into runs (run_uuid, name, source_type, status, start_time, end_time,"
                    " lifecycle_stage, experiment_id, user_id)"
                    " values (?, ?, 'LOCAL', 'FINISHED', 1, 2, 'active', 1, 'me')",
                    (run, method),
                )
                params = [("method", method, run), ("seed", str(seed), run)]
                database.executemany("insert into params (key, value, run_uuid) values (?, ?, ?)", params)
                points = [(falling(speed * (1 + 0.01 * seed))(step), step, run) for step in GRID]
                for table in ("metrics", "latest_metrics"):
                    database.executemany(
                        f"insert into {table} (key, value, timestamp, step, run_uuid, is_nan)"
                        " values ('fid', ?, 1, ?, ?, 0)",
                        points if table == "metrics" else points[-1:],
                    )
    return file


def content(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def verdict(source: str) -> tuple[str, float | None]:
    found = audit_claim(claim(), read_logs([source], claim()))
    return found.verdict, found.gain.estimate


@pytest.mark.parametrize("bad", [math.inf, pytest.param(-math.inf, marks=pytest.mark.slow), math.nan])
def test_value_that_is_not_finite_is_refused_with_its_run_and_step(
    tmp_path: Path, new_store: NewStore, bad: float
) -> None:
    uri = filled(new_store(tmp_path / "mlflow.db"), bad=bad)
    with pytest.raises(UserError, match=rf"new \(run \w+\): fid at step 60000 is {bad}"):
        read_logs([uri], claim())


def test_value_left_out_of_a_mirrored_store_is_refused_as_in_the_record(
    tmp_path: Path, new_store: NewStore
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(uri := new_store(tmp_path / "mlflow.db")))
    tags = {"flowrace.not_finite": "train/loss at step 3: nan; eval/fid at step 7: inf"}
    for method in SPEEDS:
        params = {"method": method, "seed": 0}
        logged(client, client.create_experiment(method), params, [("eval/fid", 3.0, 9)], tags=tags)
    with pytest.raises(UserError, match="eval/fid at step 7: inf"):
        read_logs([uri], claim())


def test_store_of_an_earlier_mlflow_is_read_and_not_one_byte_changes(
    tmp_path: Path, new_store: NewStore
) -> None:
    (tmp_path / "theirs").mkdir()
    file = earlier_store(tmp_path / "theirs" / "mlflow.db")
    before = content(file.parent)
    assert verdict(f"sqlite:///{file}") == verdict(filled(new_store(tmp_path / "mlflow.db")))
    assert content(file.parent) == before
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("select version_num from alembic_version").fetchall() == [(EARLIER,)]


def test_store_of_an_earlier_mlflow_is_not_mirrored_into(tmp_path: Path) -> None:
    file = earlier_store(tmp_path / "mlflow.db")
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(UserError, match=f"schema {EARLIER}.*mlflow db upgrade sqlite:///"):
        create_store(f"sqlite:///{file}")
    assert hashlib.sha256(file.read_bytes()).hexdigest() == before


def test_store_of_a_later_mlflow_is_refused_and_unchanged(tmp_path: Path, new_store: NewStore) -> None:
    uri = filled(new_store(tmp_path / "mlflow.db"))
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database, database:
        database.execute("update alembic_version set version_num = 'ffffffffffff'")
    before = content(tmp_path)
    with pytest.raises(
        UserError, match=r"another version of MLflow .schema ffffffffffff.*pip install -U mlflow"
    ):
        read_logs([uri], claim())
    assert content(tmp_path) == before


def test_database_of_another_program_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "x.db")) as database, database:
        database.execute("create table points (x real)")
    with pytest.raises(UserError, match="not an MLflow store"):
        read_logs([f"sqlite:///{tmp_path}/x.db"], claim())


def test_store_with_a_write_ahead_log_is_read_with_the_values_of_the_log(
    tmp_path: Path, new_store: NewStore
) -> None:
    """The last values are in the log only, and a writer has the store open."""
    uri = filled(new_store(tmp_path / "mlflow.db"))
    expected = read_logs([uri], claim()).baseline[0].curve.measured
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as writer:
        writer.execute("pragma journal_mode = wal")
        writer.execute("pragma wal_autocheckpoint = 0")
        with writer:
            writer.execute("update metrics set value = value * 0.5")
        before = content(tmp_path)
        found = read_logs([uri], claim()).baseline[0].curve.measured
        assert content(tmp_path) == before
    assert found == pytest.approx(0.5 * expected)


def test_file_store_is_read_as_a_database_and_unchanged(
    tmp_path: Path, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    filled((tmp_path / "my #1 mlruns").as_uri())
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    before = content(tmp_path / "my #1 mlruns")
    expected = verdict(filled(new_store(tmp_path / "mlflow.db")))
    assert verdict(str(tmp_path / "my #1 mlruns")) == expected
    assert verdict(f"{tmp_path / 'my #1 mlruns'}#theirs") == expected
    assert content(tmp_path / "my #1 mlruns") == before


def test_path_may_contain_a_hash_spaces_and_percent_signs(tmp_path: Path, new_store: NewStore) -> None:
    (folder := tmp_path / "a #1 b").mkdir()
    filled(new_store(tmp_path / "mlflow.db"))
    (tmp_path / "mlflow.db").rename(folder / "my#runs 100%.db")
    found = verdict(f"sqlite:///{folder}/my#runs 100%.db")
    assert found[0] == "supported" and verdict(f"sqlite:///{folder}/my#runs 100%.db#theirs") == found


def test_all_pages_of_experiments_and_runs_are_read(
    tmp_path: Path, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(uri := new_store(tmp_path / "mlflow.db")))
    for method in SPEEDS:
        for seed in range(4):
            group = client.create_experiment(f"{method}-{seed}")
            logged(client, group, {"method": method, "seed": seed}, [("fid", 30.0, 9), ("fid", 3.0, 99)])
    monkeypatch.setattr(mlflow_runs, "PAGE", 3)
    found = read_logs([uri], claim())
    assert list(found.baseline) == list(found.candidate) == [0, 1, 2, 3]


def test_seed_of_64_bits_is_kept(tmp_path: Path, new_store: NewStore) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(uri := new_store(tmp_path / "mlflow.db")))
    group = client.create_experiment("theirs")
    seeds = [2**63 - 1, 2**63, 2**64 - 1]
    for method in SPEEDS:
        for seed in seeds:
            logged(client, group, {"method": method, "seed": seed}, [("fid", 30.0, 9), ("fid", 3.0, 99)])
    assert list(read_logs([uri], claim()).candidate) == seeds


def test_last_value_of_a_step_counts_with_a_note(tmp_path: Path, new_store: NewStore) -> None:
    """The run was resumed before step 60000, and logged it again later."""
    from mlflow import MlflowClient

    uri = filled(new_store(tmp_path / "mlflow.db"))
    client = MlflowClient(tracking_uri=uri)
    group = client.get_experiment_by_name("theirs")
    assert group is not None
    run = client.search_runs([group.experiment_id], "params.method = 'new' and params.seed = '1'")[0]
    client.log_metric(run.info.run_id, "fid", 13.5, timestamp=5, step=60_000)
    found = read_logs([uri], claim())
    assert 13.5 in found.candidate[1].curve.measured
    assert any("fid was logged again at 1 steps; the last value counts" in note for note in found.notes)
