"""Faults of the machine while a report or a mirror is written, and several commands on one store."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from harness.errors import UserError
from harness.records.mlflow_mirror import mirror
from harness.records.record import Record, find_records
from tests.reports.synthetic import write_race
from tests.support.commands import flowrace
from tests.support.forked import command_in_child, exit_code
from tests.support.machine_faults import FAULTS, in_file
from tests.support.mlflow_runs import events, expected, rows, written
from tests.sweeps.conftest import STUDY, TABLE, stub_command


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("ending", ["r.html", "r-runs.csv"])
def test_report_that_cannot_be_written_says_so_and_keeps_the_old_one(tmp_path: Path, ending: str) -> None:
    runs = write_race(tmp_path / "runs", {"flow": 1.0, "repa": 2.0}, seeds=2)
    page = tmp_path / "out" / "r.html"
    page.parent.mkdir()
    assert flowrace("report", runs, "-o", page, "--target", "30").exit_code == 0
    old = {file.name: file.read_bytes() for file in page.parent.iterdir()}
    for number in FAULTS:
        reason = os.strerror(number)
        with pytest.MonkeyPatch.context() as patch:
            in_file(ending)(patch, OSError(number, reason))
            result = flowrace("report", runs, "-o", page, "--target", "40")
        assert str(result.exception) == f"cannot write {page.with_name(ending)}: {reason}"
        assert page.read_bytes() == old["r.html"] and {one.name for one in page.parent.iterdir()} == set(old)
    assert flowrace("report", runs, "-o", page, "--target", "30").exit_code == 0
    assert {file.name: file.read_bytes() for file in page.parent.iterdir()} == old


@pytest.fixture
def disk() -> Iterator[dict[str, str]]:
    """Yield the pragmas of every connection to a database, which tests change."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    pragmas = {"max_page_count": "1000000", "query_only": "0"}

    def prepare(connection: Any, *_: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            for name, value in pragmas.items():
                connection.execute(f"PRAGMA {name} = {value}").close()

    event.listen(Engine, "checkout", prepare)
    yield pragmas
    event.remove(Engine, "checkout", prepare)


@pytest.mark.parametrize(
    ("pragma", "reason"),
    [
        ("max_page_count", "database or disk is full"),
        pytest.param("query_only", "readonly database", marks=pytest.mark.slow),
    ],
)
def test_mirror_into_a_full_or_read_only_store_says_so_and_is_completed_by_the_next(
    tmp_path: Path, new_store: Callable[[Path], str], disk: dict[str, str], pragma: str, reason: str
) -> None:
    """SQLite itself reports the fault: it may not take more pages, or not write at all."""
    uri = new_store(tmp_path / "mlflow.db")
    first, second = (written(tmp_path / name, events(60, every=20)) for name in ("abc", "def"))
    mirror([first], uri=uri, study="s")
    stored = rows(uri)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        (pages,) = database.execute("PRAGMA page_count").fetchone()
    whole = dict(disk)
    disk[pragma] = {"max_page_count": str(pages), "query_only": "1"}[pragma]
    with pytest.raises(UserError, match=rf"^cannot mirror into {uri}: .*{reason}") as failed:
        mirror([first, second], uri=uri, study="s")
    assert "\n" not in str(failed.value)
    disk |= whole
    assert rows(uri) >= stored
    mirror([first, second], uri=uri, study="s", complete=True)
    assert rows(uri) == expected(first, 60) + expected(second, 60)


@pytest.mark.slow
def test_two_sweeps_a_tune_and_a_mirror_share_one_store(
    tmp_path: Path, new_store: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runs are stubs that write real records. Every point of every run is stored once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STUB", raising=False)
    monkeypatch.setattr("sweeps.launch.runner.run_command", stub_command)
    uri = new_store(tmp_path / "mlflow.db")
    (tmp_path / "one.toml").write_text(STUDY)
    (tmp_path / "two.toml").write_text(STUDY.replace('"tiny"', '"other"').replace("[0, 1]", "[2, 3]"))
    (tmp_path / "t.toml").write_text(tomli_w.dumps(TABLE | {"tune": TABLE["tune"] | {"trials": 2}}))
    ready = write_race(tmp_path / "ready", {"flow": 1.0, "repa": 2.0}, seeds=2)
    sweep = partial("sweep {0}.toml --out runs/{0} --track {uri} --no-report --json".format, uri=uri)
    commands = [
        sweep("one").split(), sweep("two").split(), ["tune", "t.toml", "--out", "runs/t", "--json"],
        ["mirror", str(ready), "--to", uri],
    ]  # fmt: skip
    children = [command_in_child(words, tmp_path / f"{n}.log") for n, words in enumerate(commands)]
    codes = [exit_code(child) for child in children]
    assert codes == [0, 0, 0, 0], [(tmp_path / f"{n}.log").read_text()[-2000:] for n in range(4)]
    records = find_records(tmp_path / "runs" / "one", tmp_path / "runs" / "two", ready)
    assert len(records) == 12 and {record.status for record in records} == {"done"}
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        named = database.execute(
            "select value, count(*) from tags join runs using (run_uuid) "
            "where lifecycle_stage = 'active' and key = 'flowrace.run_id' group by value"
        ).fetchall()
        (twice,) = database.execute(
            "select count(*) from (select 1 from metrics group by run_uuid, key, step having count(*) > 1)"
        ).fetchone()
    assert sorted(named) == [(record.id, 1) for record in sorted(records, key=lambda one: one.id)]
    assert twice == 0 and rows(uri).total() > 0
    for folder, study in (("runs/one", "tiny"), ("runs/two", "other"), ("ready", "ready")):
        again = mirror([Record(one.path) for one in find_records(tmp_path / folder)], uri=uri, study=study)
        assert again.points == 0
