"""User name and password of a tracking URI: in no record, page, log or error."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from harness.records.mlflow_mirror import mirror
from harness.records.record import find_records
from reports.audit.inputs import log_runs
from reports.audit.inputs.mlflow_runs import open_for_reading
from tests.reports.audits import claim_file
from tests.reports.synthetic import METRIC, write_race
from tests.support.commands import flowrace
from tests.support.runs import tiny, trained

URI = "http://ann:hunter2@127.0.0.1:1"
SECRETS = ("hunter2", "ann:", "ann%3A", "t0ken")


@pytest.fixture(autouse=True)
def _no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens on the port; the first refusal is the answer."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_race(tmp_path_factory.mktemp("runs"), {"flow": 1.0, "repa": 2.0}, seeds=2)


def written(folder: Path) -> list[Path]:
    """Return the files in a folder that hold a secret."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    return [file for file in files if any(one.encode() in file.read_bytes() for one in SECRETS)]


@pytest.mark.usefixtures("quick_networks")
def test_no_error_and_no_file_has_a_secret_of_the_store(runs: Path, tmp_path: Path) -> None:
    run = trained(tiny("train.steps=4", "eval.samples=4", "eval.sampler_steps=1"), tmp_path / "out").path
    claim = claim_file(tmp_path, candidate="repa", baseline="flow", metric=METRIC)
    for words in (
        ("mirror", runs, "--to", URI),
        ("run", run, "--track", URI, "--quiet"),
        ("audit", claim, URI),
        ("report", URI, "-o", tmp_path / "r.html"),
        ("report", "http://ann:hunter2@example.org/x", "-o", tmp_path / "r.html"),
        ("audit", claim, "sqlite://ann:hunter2@host/x.db"),
    ):
        result = flowrace(*words)
        said = f"{result.output} {result.exception}"
        assert result.exception is not None and not any(one in said for one in SECRETS), said
        assert any(place in said for place in ("127.0.0.1", "example.org", "host/x.db")), said
    assert written(tmp_path) == []


@pytest.mark.usefixtures("undrawn")
def test_page_of_a_server_repeats_its_command_without_the_secret(
    runs: Path, tmp_path: Path, new_store: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is a store in a file."""
    store = new_store(tmp_path / "mlflow.db")
    mirror(find_records(runs), uri=store, study="race", complete=True)

    def opened(uri: str) -> AbstractContextManager[Any]:
        assert uri == URI
        return open_for_reading(store)

    monkeypatch.setattr(log_runs, "open_for_reading", opened)
    page = tmp_path / "page"
    page.mkdir()
    result = flowrace("report", f"{URI}#race", "-o", page / "r.html", "--target", "30", "--json")
    assert result.exit_code == 0, result.output
    assert written(page) == [] and not any(one in result.output for one in SECRETS)
    assert "flowrace report 'http://127.0.0.1:1#race'" in (page / "r.html").read_text().replace("&#39;", "'")
