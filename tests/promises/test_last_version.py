"""Run directories, plans, stores and plug-ins of version 0.1.0: read, judged and continued by today's code.

`said/` holds what 0.1.0 printed about them. tests/fixtures/last_version/made_with/make.sh made them; the
stores are zipped, and logs and most pictures are left out.
"""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from harness.backbone.sizes import SIZES, Size
from harness.cli.main import cli
from harness.records import checkpoint
from harness.records.flatten import points
from harness.records.mlflow_mirror import mirror
from harness.records.record import Record, find_records, tracked_name

LAST = Path(__file__).parents[1] / "fixtures" / "last_version"
MADE_IN = "/tmp/fix/work"
"""The folder that the stores name."""
CLAIM = LAST / "made_with" / "claim.toml"
STOPPED = [pytest.param(path.name, marks=pytest.mark.slow) for path in sorted((LAST / "stopped").iterdir())]


def flowrace(*words: object) -> str:
    """Return the output of a command that succeeds."""
    result = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def said(name: str) -> Any:
    return json.loads((LAST / "said" / name).read_text())


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    shutil.copytree(LAST / "studies", tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def stores(tmp_path: Path) -> Path:
    """Both stores, moved here with the places that they name."""
    folder = tmp_path / "stores"
    with zipfile.ZipFile(LAST / "stores.zip") as archive:
        archive.extractall(folder)
    for file in (folder / "file_store").rglob("meta.yaml"):
        file.write_text(file.read_text().replace(MADE_IN, str(folder)))
    with sqlite3.connect(folder / "sqlite" / "mlflow.db") as database:
        for table, column in (("runs", "artifact_uri"), ("experiments", "artifact_location")):
            database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (MADE_IN, str(folder)))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_status_is_what_it_was(studies: Path) -> None:
    found = json.loads(flowrace("status", studies / "last", "--json"))
    assert found | {"directory": ""} == said("status.json") | {"directory": ""}


@pytest.mark.parametrize(
    ("study", "planned"),
    [("last", "dry-run.json"), pytest.param("joint", "joint-dry-run.json", marks=pytest.mark.slow)],
)
def test_plan_is_what_it_was(studies: Path, study: str, planned: str) -> None:
    words = ("sweep", studies / study / "study.toml", "--out", studies / study, "--dry-run", "--json")
    keys = ("id", "label", "cell", "steps", "flops")
    found, then = json.loads(flowrace(*words)), said(planned)
    assert [[run[key] for key in keys] for run in found["runs"]] == [
        [run[key] for key in keys] for run in then["runs"]
    ]
    assert {run["status"] for run in found["runs"]} == {"done"}


@pytest.mark.usefixtures("undrawn")
def test_report_has_the_same_numbers(studies: Path, tmp_path: Path) -> None:
    found = json.loads(flowrace("report", studies / "last", "-o", tmp_path / "new.html", "--json"))
    assert [run["status"] for run in found["runs"]] == ["done"] * 4
    for kind in ("", "-runs", "-finals"):
        files = (tmp_path / f"new{kind}.csv", studies / "last" / f"report{kind}.csv")
        now, then = ([*csv.DictReader(file.read_text().splitlines())] for file in files)
        assert len(now) == len(then) > 1
        for new, old in zip(now, then, strict=True):
            assert list(new) == list(old)
            assert [cell(new[key]) for key in new] == [cell(old[key]) for key in old]


def cell(text: str) -> Any:
    """A field of a CSV: a number to compare with a tolerance, or its text."""
    try:
        return pytest.approx(float(text), rel=1e-9)
    except ValueError:
        return text


def test_study_of_videos_with_sound_is_reported(studies: Path, tmp_path: Path) -> None:
    found = json.loads(flowrace("report", studies / "joint", "-o", tmp_path / "joint.html", "--json"))
    assert sorted(run["run"] for run in found["runs"]) == sorted(
        r.id for r in find_records(studies / "joint")
    )


def test_replicates_are_part_of_the_evaluations(studies: Path) -> None:
    record = next(record for record in find_records(studies / "last") if record.replicates)
    measured = {event["step"]: event["metrics"] for event in record.of("eval")}
    assert list(measured) == [4, 8, 12] and sorted(record.replicates) == ["12", "8"]
    for step in (8, 12):
        assert measured[step]["fd:local"] == record.replicates[str(step)]["metrics"]["fd:local"]
        assert len(measured[step]["fd:local"]["replicates"]) == 3


def judged(*sources: object, claim: Path = CLAIM) -> dict[str, Any]:
    """The numbers of an audit, without its words."""
    found = json.loads(flowrace("audit", claim, *sources, "--json"))
    return {key: value for key, value in found.items() if key not in ("reasons", "notes", "registration")}


def test_audit_of_records_is_what_it_was(studies: Path, tmp_path: Path) -> None:
    """The last version allowed 10 % if a claim had no tolerance. Fields that it did not print are new."""
    claim = tmp_path / "claim.toml"
    claim.write_text(CLAIM.read_text() + "tolerance = 0.10\n")
    now, then = judged(studies / "last", claim=claim), said("audit.json")
    assert then["verdict"] == now["verdict"] == "inconclusive"
    assert now.keys() - then.keys() == {"factor", "tolerance", "labels", "mlperf"}
    shared = now.keys() & then.keys()
    assert flat({key: now[key] for key in shared}) == near({key: then[key] for key in shared}, 1e-9)


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested tables and lists as one."""
    if not isinstance(value, dict | list):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {key: leaf for name, own in items for key, leaf in flat(own, f"{path}.{name}").items()}


def near(expected: Any, rel: float) -> dict[str, Any]:
    """The same with a tolerance on its floats."""
    leaves = flat(expected).items()
    return {key: pytest.approx(leaf, rel=rel) if isinstance(leaf, float) else leaf for key, leaf in leaves}


def test_audit_of_the_store_is_that_of_first_evaluations(stores: Path, studies: Path) -> None:
    """The mirror of 0.1.0 had no replicates: the store has the numbers that the records have without them."""
    (file,) = (studies / "last").glob("*/replicates.json")
    file.unlink()
    now, then = judged(f"sqlite:///{stores}/sqlite/mlflow.db"), judged(studies / "last")
    assert now["verdict"] == then["verdict"]
    assert flat(now["axes"]) == near(then["axes"], 1e-6)
    assert f"{now['axes']['flops']['speedup']:.2f}x" in (LAST / "said" / "audit-store.txt").read_text()


@pytest.mark.parametrize("kind", ["sqlite", "file_store"])
def test_mirroring_again_into_its_store_changes_nothing(
    stores: Path, studies: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    uri = f"sqlite:///{stores}/sqlite/mlflow.db" if kind == "sqlite" else f"file://{stores}/file_store"
    records, client = find_records(studies / "last"), MlflowClient(uri)

    def held() -> dict[str, Any]:
        """Every history in the store, by run and metric."""
        (experiment,) = (e for e in client.search_experiments() if e.name == "last")
        runs = client.search_runs([experiment.experiment_id])
        return {
            f"{run.info.run_id} {name}": [
                (point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)
            ]
            for run in runs
            for name in run.data.metrics
        }  # fmt: skip

    before = held()
    mirror(records, uri=uri, study="last", complete=True)
    assert held() == before
    losses = sorted(tuple(history) for name, history in before.items() if name.endswith(" train/loss"))
    own = [
        [(e["step"], points(e)[tracked_name("train/loss")]) for e in record.of("train")] for record in records
    ]
    assert losses == sorted(map(tuple, own))


def test_sweep_of_a_finished_study_starts_nothing(studies: Path, tmp_path: Path) -> None:
    runs = {path: own for path, own in contents(studies / "last").items() if "/" in path}
    words = ("sweep", studies / "last" / "study.toml", "--out", studies / "last", "--no-track", "--json")
    found = json.loads(flowrace(*words))
    assert [run["status"] for run in found["runs"]] == ["done"] * 4
    assert {path: own for path, own in contents(studies / "last").items() if path in runs} == runs
    assert all(len(record.environment) == 1 for record in find_records(studies / "last"))


def test_search_is_read_to_its_end_and_starts_nothing(studies: Path) -> None:
    folder = studies / "search"
    then = json.loads((folder / "history.json").read_text())
    runs = {path: own for path, own in contents(folder).items() if path.endswith(".jsonl")}
    flowrace("tune", folder / "tune.toml", "--out", folder, "--json")
    now = json.loads((folder / "history.json").read_text())
    assert flat(now) == near(then, 1e-9)
    assert {path: own for path, own in contents(folder).items() if path.endswith(".jsonl")} == runs


@pytest.mark.parametrize("name", STOPPED)
def test_stopped_run_continues_to_the_same_end(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bits are those of a CPU and a build of torch; elsewhere the numbers agree to rounding.

    Elsewhere the metric's network, which is trained here, has other bits too, and the protocol another hash.
    """
    monkeypatch.setitem(SIZES, "atom", Size(2, 16, 2))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    shutil.copytree(LAST / "stopped" / name / "at_step_6", tmp_path / "runs")
    expected = json.loads((LAST / "stopped" / name / "expected.json").read_text())
    command = shlex.split((LAST / "stopped" / name / "command.txt").read_text())
    flowrace(*command, "--out", tmp_path / "runs", "--no-track", "--quiet")

    (record,) = find_records(tmp_path / "runs")
    assert record.id == expected["id"] and record.status == "done" and len(record.environment) == 2
    same = same_machine(*record.environment)
    # A protocol's hash covers the bits of a network that each machine trains.
    ignored = {"seconds"} if same else {"seconds", "protocol"}
    events, then = (
        [{key: value for key, value in event.items() if key not in ignored} for event in rows]
        for rows in (record.events, expected["events"])
    )
    assert flat(events) == near(then, 1e-4)
    if same:
        saved = checkpoint.load(record.path / "checkpoints" / expected["checkpoint"])
        assert checkpoint.digest(saved.part("ema")) == expected["sha256"]["ema"]
        assert os.environ.get("OMP_NUM_THREADS") != "1" or events == expected["events"]


def same_machine(then: dict[str, Any], now: dict[str, Any]) -> bool:
    """Return True if two starts of a run must have the same bits."""
    named = ("device_name", "cpu_capability", "threads")
    versions = [{name: start["packages"][name] for name in ("torch", "numpy")} for start in (then, now)]
    return versions[0] == versions[1] and all(then[key] == now[key] for key in named)


ECHO = (
    "method.name=echo", "method.coefficient=0.5", "backbone.size=pico", "train.batch_size=8", "train.steps=3",
    "train.log_every=1", "train.checkpoint_every=4", "train.learning_rate=1e-3", "train.warmup_steps=0",
    "eval.every=6", "eval.samples=24", "eval.sampler_steps=3", "eval.batch_size=16", "ema.decay=0.9",
    "runtime.threads=1", "data.held_out=0.5",
)  # fmt: skip
ECHO_ID = "336de37eb694"
ECHO_LOSSES = [
    {"flow": 1.717360496520996, "align": 0.0},
    {"flow": 1.5841683149337769, "align": 0.0},
    {"flow": 1.479743480682373, "align": 0.0006839983980171382},
]
"""By 0.1.0 with this plug-in."""


@pytest.fixture
def plugin_site(tmp_path: Path) -> Path:
    """Install the plug-in by hand: its module and the entry point that pip would write."""
    site = tmp_path / "site"
    about = site / "flowrace_echo-0.1.dist-info"
    about.mkdir(parents=True)
    shutil.copy(LAST / "plugin" / "flowrace_echo.py", site)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: flowrace-echo\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text("[flowrace.methods]\necho = flowrace_echo:Echo\n")
    return site


@pytest.mark.slow
def test_plugin_is_listed_and_trains_as_before(plugin_site: Path, tmp_path: Path) -> None:
    words = [word for setting in ECHO for word in ("--set", setting)]
    folder = outside(plugin_site, "run", "digits", *words, "--out", tmp_path, "--no-track", "--quiet")
    record = Record(Path(folder.split()[-1]))
    assert record.status == "done"
    # Named as 0.1.0 named it, the same command finds it.
    record = Record(record.path.rename(tmp_path / ECHO_ID))
    again = outside(plugin_site, "run", "digits", *words, "--out", tmp_path, "--no-track", "--quiet")
    assert again.split()[-1] == str(record.path)
    assert flat([event["losses"] for event in record.of("train")]) == near(ECHO_LOSSES, 1e-5)
    methods = json.loads(outside(plugin_site, "list", "methods", "--json"))["methods"]
    assert methods["echo"]["needs"] == ["EMA teacher"]


def outside(site: Path, *words: object) -> str:
    """Return the output of a command in another process, with a folder on its import path."""
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-m", "harness.cli.main", *map(str, words)],
        capture_output=True, text=True, timeout=300, cwd=root,
        env=os.environ | {"PYTHONPATH": f"{root}:{site}"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout
