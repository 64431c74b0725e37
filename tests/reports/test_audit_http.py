"""The audit of a study over HTTP, on a real tracking server on the loopback interface."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.errors import UserError
from harness.records.mlflow_mirror import mirror
from harness.records.record import Record
from reports.audit.audit import audit_claim
from reports.audit.inputs.read import read_logs
from reports.cli.audit import audit as command
from reports.stats.curves import AXES
from tests.reports.audits import claim, claim_file
from tests.reports.synthetic import METRIC, write_race
from tests.support.tracking_server import Server, free_port

pytestmark = pytest.mark.slow
CHANGES = {"candidate": "repa", "baseline": "flow", "metric": METRIC, "target": 25.0, "factor": 1.4}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_race(tmp_path_factory.mktemp("runs"), {"flow": 1, "repa": 1.6}, grid=range(200, 2001, 200))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, runs: Path) -> Iterator[Server]:
    """Over SQLite, with the study `race` mirrored into it."""
    folder = tmp_path_factory.mktemp("server")
    served = Server(f"sqlite:///{folder}/mlflow.db", folder, free_port())
    served.start()
    try:
        records = [Record(path) for path in sorted(runs.iterdir())]
        mirror(records, uri=served.uri, study="race", complete=True)
        yield served
    finally:
        served.kill()


def test_audit_over_http_equals_that_of_the_records(server: Server, runs: Path) -> None:
    for axis in AXES:
        judged_claim = claim(**CHANGES, axis=axis)
        tracked = audit_claim(judged_claim, read_logs([f"{server.uri}#race"], judged_claim))
        recorded = audit_claim(judged_claim, read_logs([str(runs)], judged_claim))
        assert tracked.verdict == recorded.verdict == "supported"
        assert tracked.gain.estimate == pytest.approx(recorded.gain.estimate, rel=1e-9)
        assert (tracked.gain.low, tracked.gain.high) == pytest.approx(
            (recorded.gain.low, recorded.gain.high), rel=1e-9
        )
        assert {log.machines for log in tracked.logs.all} == {("cpu x86_64, threads: 1",)}


def test_command_audits_a_server(server: Server, tmp_path: Path) -> None:
    file = claim_file(tmp_path, **CHANGES)
    result = CliRunner().invoke(command, [str(file), server.uri], catch_exceptions=False)
    assert result.exit_code == 0 and "SUPPORTED" in result.output


@pytest.mark.parametrize(
    ("fragment", "changes", "message"),
    [
        ("#rase", {}, "unknown experiment 'rase'.*Did you mean 'race'"),
        ("", {"candidate": "repo"}, "unknown method in http://127.*: 'repo'"),
        ("", {"metric": "fd:lokal"}, "has the metric 'fd:lokal'"),
    ],
)
def test_unknown_name_on_a_server_is_rejected(
    server: Server, fragment: str, changes: dict, message: str
) -> None:
    judged_claim = claim(**CHANGES | changes)
    with pytest.raises(UserError, match=message):
        read_logs([server.uri + fragment], judged_claim)


def test_unreachable_server_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(UserError, match=f"cannot read {uri}"):
        read_logs([uri], claim(**CHANGES))
