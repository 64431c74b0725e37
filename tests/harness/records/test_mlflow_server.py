"""Eight runs mirrored at once to a tracking server on PostgreSQL, which is killed on the way: every point is
stored once."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.records.mlflow_mirror import mirror
from harness.records.record import Record
from tests.support.mlflow_runs import events, expected, written
from tests.support.tracking_server import Server, free_port, postgresql

RUNS, STEPS = 8, 300


@pytest.fixture
def server() -> Iterator[Server]:
    pytest.importorskip("psycopg", reason="the driver of PostgreSQL is not installed")
    with tempfile.TemporaryDirectory() as folder, postgresql(Path(folder)) as database:
        served = Server(database, Path(folder), free_port())
        served.start()
        try:
            yield served
        finally:
            served.kill()


def query(server: Server, text: str) -> list[tuple[Any, ...]]:
    """Query the database directly."""
    import psycopg

    with psycopg.connect(server.database) as database, database.cursor() as cursor:
        cursor.execute(text)
        return cursor.fetchall()


def records(folder: Path) -> list[Record]:
    spec = 'seed = {seed}\n[method]\nname = "flow"\n[data]\nroot = ""\n'
    study = folder / "study"
    study.mkdir()
    (study / "study.toml").write_text('name = "study"\n')
    return [
        written(study / f"{seed:012x}", events(STEPS, every=50), spec=spec.format(seed=seed))
        for seed in range(RUNS)
    ]


def writer(record: Record, uri: str) -> subprocess.Popen[bytes]:
    command = (sys.executable, "-m", "harness.cli.main", "mirror", str(record.path), "--to", uri)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def write_all(found: list[Record], server: Server, *, kill_at: int | None = None) -> list[str]:
    """Mirror all records at once, each in a separate process; return the output of those that failed."""
    writers = [writer(record, server.uri) for record in found]
    while kill_at is not None and any(w.poll() is None for w in writers):
        (stored,) = query(server, "select count(*) from metrics")[0]
        if stored >= kill_at:
            server.kill()
            server.start()
            kill_at = None
        time.sleep(0.05)
    assert kill_at is None, "all writers finished before the server was killed"
    ended = [(w.communicate(timeout=300)[0].decode(), w.returncode) for w in writers]
    assert {code for _, code in ended} <= {0, 2}, ended
    return [text for text, code in ended if code]


@pytest.mark.slow
def test_eight_writers_store_every_point_once_when_the_server_is_killed(
    tmp_path: Path, server: Server
) -> None:
    found = records(tmp_path)
    wanted = sum((expected(record, STEPS) for record in found), Counter())
    assert len(wanted) > 2000

    failed = write_all(found, server, kill_at=sum(wanted.values()) // 3)
    for text in failed:
        assert "cannot mirror into http://127.0.0.1" in text and "Traceback" not in text
    # The failed commands are rerun at most twice.
    for _ in range(2):
        if failed:
            failed = write_all(found, server)
    assert not failed

    active = "join runs using (run_uuid) where lifecycle_stage = 'active'"
    points = f"select key, step, value, timestamp from metrics {active}"
    assert Counter(query(server, points)) == wanted
    tagged = f"select value, count(*) from tags {active} and key = 'flowrace.{{}}' group by value"
    assert sorted(query(server, tagged.format("run_id"))) == [(record.id, 1) for record in found]
    assert query(server, tagged.format("study")) == [("study", 1)]
    assert query(server, "select count(*) from experiments where name = 'study'") == [(1,)]

    assert mirror(found, uri=server.uri, study="study").points == 0
