"""The register of claims: append-only, and compared with the times of runs."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.errors import UserError
from reports.audit.inputs.claim import claim_hash
from reports.audit.judge_files import judge_claims
from reports.audit.register import Standing, read_register, register_claims, standing
from reports.cli.audit import audit as command
from tests.reports.audits import claim, claim_file, falling, rows, write_csv
from tests.reports.synthetic import METRIC, write_run

MARCH = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = 3_600_000


def test_claim_is_registered_once(tmp_path: Path) -> None:
    file = tmp_path / "register.jsonl"
    (first, new), (_, twice) = register_claims(file, [claim(), claim()], MARCH)
    assert (first.hash, first.name, first.time) == (
        claim_hash(claim()),
        "faster",
        "2026-03-01T00:00:00.000+00:00",
    )
    assert (new, twice) == (True, False)
    content = file.read_bytes()
    [(again, new)] = register_claims(file, [claim()])
    assert again == first and not new and file.read_bytes() == content
    register_claims(file, [claim(factor=3.0)])
    assert file.read_bytes().startswith(content) and len(read_register(file)) == 2


@pytest.mark.parametrize(
    "tamper",
    [
        lambda text: text.replace('"factor": 3.0', '"factor": 2.9'),
        lambda text: text.replace("2026-03-01", "2026-02-01", 1),
        lambda text: "".join(text.splitlines(keepends=True)[1:]),
        lambda text: text + "{}\n",
        lambda text: text[:-5],
        lambda text: text.replace("2026-03-01T00:00:00.000+00:00", "yesterday"),
    ],
)
def test_altered_register_is_rejected(tmp_path: Path, tamper) -> None:
    file = tmp_path / "register.jsonl"
    register_claims(file, [claim(), claim(factor=3.0), claim(factor=4.0)], MARCH)
    file.write_text(tamper(file.read_text()))
    before = file.read_bytes()
    for action in (lambda: read_register(file), lambda: register_claims(file, [claim(factor=5.0)])):
        with pytest.raises(UserError, match=r"was altered|is torn"):
            action()
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("begun", "expected"),
    [
        (MARCH.timestamp() * 1000 + HOUR, "registered before the runs"),
        (MARCH.timestamp() * 1000 - 1000, "registered during the runs"),
        (MARCH.timestamp() * 1000 - HOUR, "post hoc"),
        (None, "registered, times of runs unknown"),
    ],
)
def test_standing_follows_from_the_times_of_runs(
    tmp_path: Path, begun: float | None, expected: Standing
) -> None:
    """The synthetic runs take about 66 seconds: 2000 steps of 23.5 ms, 20 evaluations of 0.7 s."""
    started = {} if begun is None else {"started": begun}
    for seed in range(3):
        for method, speed in (("flow", 1.0), ("repa", 2.0)):
            path = tmp_path / "runs" / f"{method}-{seed}"
            write_run(path, method, seed, metric=lambda s, v=speed: falling(v)(100 * s), environment=started)
    file = claim_file(tmp_path, candidate="repa", baseline="flow", metric=METRIC)
    register_claims(
        tmp_path / "register.jsonl", [claim(candidate="repa", baseline="flow", metric=METRIC)], MARCH
    )
    found = CliRunner().invoke(command, [str(file), str(tmp_path / "runs"), "--json"], catch_exceptions=False)
    assert json.loads(found.stdout)["registration"] == expected


def test_changed_claim_is_no_longer_registered(tmp_path: Path) -> None:
    register_claims(tmp_path / "register.jsonl", [claim()], MARCH)
    entries = read_register(tmp_path / "register.jsonl")
    assert standing(claim(factor=1.5), entries, []) == "changed since it was registered"
    assert standing(claim(factor=1.5, name="other"), entries, []) == "not registered"


def test_register_command_appends_once(tmp_path: Path) -> None:
    file = claim_file(tmp_path)
    found = CliRunner().invoke(command, ["register", str(file), "--json"], catch_exceptions=False)
    [row] = json.loads(found.stdout)["claims"]
    assert row["hash"] == claim_hash(claim()) and row["new"]
    assert read_register(tmp_path / "register.jsonl")[row["hash"]].time == row["time"]
    elsewhere = CliRunner().invoke(
        command, ["register", str(file), "--register", str(tmp_path / "none" / "r")]
    )
    assert isinstance(elsewhere.exception, UserError)
    again = CliRunner().invoke(command, ["register", str(file)], catch_exceptions=False)
    assert "registered before" in again.stdout and row["hash"] in again.stdout


def test_claim_registered_by_version_0_2_keeps_the_tolerance_it_was_registered_with(tmp_path: Path) -> None:
    """Version 0.2 registered 10 % for a claim that sets no tolerance; a new registration means 0."""
    lines = rows({"old": 1.0, "new": 1.9}, noise=0.0)
    file, table = claim_file(tmp_path, tolerance=None), write_csv(tmp_path / "curves.csv", lines)
    verdicts = []
    for registered in (claim(tolerance=0.10), claim(tolerance=0.0)):
        register = tmp_path / f"{registered.tolerance}.jsonl"
        register_claims(register, [registered], MARCH)
        (found,) = judge_claims([file], [str(table)], register)
        assert found.standing != "changed since it was registered"
        verdicts.append((found.claim.tolerance, found.verdict))
    assert verdicts == [(0.10, "supported"), (0.0, "refuted")]
