"""Commands that read records name what does not fit in them, and no verdict rests on such records."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import Result

from reports.analysis.report import read_report
from tests.reports.audits import CHANGES, claim_file, reason_names, run_audit, run_records
from tests.reports.synthetic import METRIC
from tests.support.commands import flowrace

LOST = "its events.jsonl does not fit its chain: 1 of 40 events up to step 2000 was lost"
SPEC = "its spec.toml was altered after the run wrote it"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = run_records(tmp_path_factory.mktemp("whole") / "runs", {"flow": 1.0, "repa": 2.2})
    runs = [{"id": one.name, "cell": {"method.name": one.name}} for one in sorted(folder.iterdir())]
    (folder / "plan.json").write_text(json.dumps({"runs": runs, "excluded": []}))
    return folder


@pytest.fixture
def altered(whole: Path, tmp_path: Path) -> Path:
    """Return runs of which one lost an evaluation, and another was given another batch size afterwards."""
    folder = Path(shutil.copytree(whole, tmp_path / "runs"))
    file = folder / "repa-1" / "events.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:3] + lines[4:]))
    spec = folder / "flow-2" / "spec.toml"
    spec.write_text(spec.read_text() + "# a comment\n")
    return folder


def warnings(result: Result) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.startswith("warning: ")]


def test_audit_is_inconclusive_and_names_the_runs(whole: Path, altered: Path, tmp_path: Path) -> None:
    claim = str(claim_file(tmp_path, **CHANGES))
    assert run_audit(claim, str(whole))["verdict"] == "supported"
    found = run_audit(claim, str(altered))
    assert found["verdict"] == "inconclusive" and reason_names(found) == ["record"]
    assert found["reasons"] == [f"record: flow seed 2: {SPEC}. repa seed 1: {LOST}"]


@pytest.mark.usefixtures("undrawn")
def test_report_warns_and_shows_the_sentence_on_its_page_and_in_json(altered: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = flowrace("report", altered, "-o", page, "--target", "30", "--json")
    assert result.exit_code == 0
    assert warnings(result) == [f"warning: run flow-2: {SPEC}", f"warning: run repa-1: {LOST}"]
    assert json.loads(result.stdout)["caveats"][:2] == [
        f"Run flow-2: {SPEC}. Do not quote its numbers.",
        f"Run repa-1: {LOST}. Do not quote its numbers.",
    ]
    assert f"Run repa-1: {LOST}. Do not quote its numbers." in page.read_text()


def test_report_of_records_that_fit_has_no_such_sentence(whole: Path) -> None:
    report = read_report([whole], metric=METRIC, target=30.0)
    assert report.race.misfits == () and not any("fit its chain" in one for one in report.caveats)


def test_status_and_export_warn(altered: Path) -> None:
    status = flowrace("status", altered, "--json")
    rows = {row["id"]: row for row in json.loads(status.stdout)["runs"]}
    assert rows["repa-1"]["misfits"] == [LOST] and "misfits" not in rows["repa-0"]
    assert any(line.endswith(LOST) for line in warnings(status)) and len(warnings(status)) == 2
    table = flowrace("export", altered)
    assert warnings(table) == [f"warning: run flow-2: {SPEC}", f"warning: run repa-1: {LOST}"]
    assert len(table.stdout.splitlines()) == 7
