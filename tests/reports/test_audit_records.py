"""`flowrace audit` on run directories: recorded hardware, alignment and protocols, and failed runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from harness.files.files import write_atomic
from harness.records.record import EVENTS
from tests.reports.audits import CHANGES, claim_file, falling, reason_names, run_audit, run_records
from tests.reports.synthetic import METRIC, write_run


def test_audit_of_records_has_all_axes(tmp_path: Path) -> None:
    runs = run_records(tmp_path / "runs", {"flow": 1.0, "repa": 2.2})
    found = run_audit(str(claim_file(tmp_path, **CHANGES)), str(runs))
    assert found["verdict"] == "supported" and found["axes"]["flops"] == pytest.approx(found["axes"]["steps"])
    assert found["axes"]["gpu_seconds"]["speedup"] == pytest.approx(found["axes"]["seconds"]["speedup"])
    assert found["registration"] == "not registered"


@pytest.mark.parametrize(
    ("name", "environment", "axis"),
    [
        ("hardware", {"device_name": "another"}, "seconds"),
        ("aligned", {"evaluation": {"aligned": [METRIC]}}, "steps"),
        (
            "protocol",
            {"evaluation": {"hash": "other", "protocol": {"sampler": "euler", "n_fake": 512}}},
            "steps",
        ),
    ],
)
def test_failed_precondition_of_records_is_named(
    tmp_path: Path, name: str, environment: dict, axis: str
) -> None:
    same = (
        {"evaluation": {"hash": "one", "protocol": {"sampler": "heun", "n_fake": 512}}}
        if name == "protocol"
        else {}
    )
    run_records(tmp_path / "runs", {"flow": 1.0}, environment=same, protocol="one")
    hash_ = "other" if name == "protocol" else "one"
    run_records(tmp_path / "runs", {"repa": 2.2}, environment=environment, protocol=hash_)
    found = run_audit(str(claim_file(tmp_path, **CHANGES, axis=axis)), str(tmp_path / "runs"))
    assert found["verdict"] == "inconclusive" and reason_names(found) == [name]
    if name == "protocol":
        assert found["reasons"][0].endswith("evaluations differ in sampler (euler, heun)")
    if name == "hardware":
        assert found["axes"]["steps"]["speedup"] and found["axes"]["seconds"]["speedup"] is None


def test_consecutive_arms_are_not_compared_on_the_clock(tmp_path: Path) -> None:
    run_records(tmp_path / "runs", {"flow": 1.0}, environment={"started": 1_000_000})
    run_records(tmp_path / "runs", {"repa": 2.2}, environment={"started": 2_000_000})
    found = run_audit(str(claim_file(tmp_path, **CHANGES, axis="seconds")), str(tmp_path / "runs"))
    assert reason_names(found) == ["hardware"] and "interleaved" in found["reasons"][0]


def test_excluded_runs_are_noted(tmp_path: Path) -> None:
    runs = run_records(tmp_path / "runs", {"flow": 1.0, "repa": 2.2}, seeds=4)
    (runs / "repa-3" / "done").unlink()
    found = run_audit(str(claim_file(tmp_path, **CHANGES)), str(runs))
    assert found["n_pairs"] == 3
    assert any("repa seed 3 is stopped" in note for note in found["notes"])
    assert any("only one arm has are left out: 3" in note for note in found["notes"])


def failed(folder: Path, method: str, *, evaluated: bool) -> None:
    """Write a fourth seed of a method, which fails before it reaches the target."""
    path = folder / f"{method}-3"
    speed = 2.2 if method == "repa" else 1.0
    curve = lambda s: falling(speed)(100 * s)  # noqa: E731
    write_run(path, method, 3, metric=curve, grid=[100, 200, 300], status="failed")
    if not evaluated:
        file = path / EVENTS
        file.write_text("".join(line for line in file.open() if json.loads(line)["kind"] != "eval"))


def test_failed_candidate_is_not_left_out_of_its_claim(tmp_path: Path) -> None:
    """Three seeds give 2.2x and one diverged, so the low end is open; the budget is unchanged."""
    runs = run_records(tmp_path / "runs", {"flow": 1.0, "repa": 2.2}, seeds=4)
    assert run_audit(str(claim_file(tmp_path, **CHANGES)), str(runs))["verdict"] == "supported"
    shutil.rmtree(runs / "repa-3")
    failed(runs, "repa", evaluated=True)
    found = run_audit(str(claim_file(tmp_path, **CHANGES)), str(runs))
    assert found["verdict"] == "inconclusive" and reason_names(found) == ["interval"]
    assert found["n_pairs"] == 4 and found["censored"] == {"flow": 0, "repa": 1}
    assert found["axes"]["steps"]["low"] is None
    assert found["reached"]["curves"]["repa"][-1] == [pytest.approx(450, rel=0.1), 0.75]
    assert any("repa seed 3 failed: censored" in note for note in found["notes"])


def test_failed_baseline_is_censored(tmp_path: Path) -> None:
    """Its time is at least its 300 steps, so the high end is open."""
    runs = run_records(tmp_path / "runs", {"flow": 1.0, "repa": 2.2}, seeds=4)
    shutil.rmtree(runs / "flow-3")
    failed(runs, "flow", evaluated=True)
    found = run_audit(str(claim_file(tmp_path, **CHANGES)), str(runs))
    assert found["censored"] == {"flow": 1, "repa": 0} and found["axes"]["steps"]["high"] is None
    assert found["reached"]["horizon"] == 2000


def test_run_that_failed_before_its_first_evaluation_decides_nothing(tmp_path: Path) -> None:
    runs = run_records(tmp_path / "runs", {"flow": 1.0, "repa": 2.2})
    failed(runs, "repa", evaluated=False)
    found = run_audit(str(claim_file(tmp_path, **CHANGES)), str(runs))
    assert found["verdict"] == "inconclusive" and reason_names(found) == ["failed"]
    assert "repa seed 3 failed before its first evaluation" in found["reasons"][0]


def test_unequal_settings_are_noted(tmp_path: Path) -> None:
    run_records(tmp_path / "runs", {"flow": 1.0})
    run_records(tmp_path / "runs", {"repa": 2.2}, set_={"train.batch_size": 128})
    found = run_audit(str(claim_file(tmp_path, **CHANGES)), str(tmp_path / "runs"))
    assert any("equal footing: train.batch_size (128, 64)" in note for note in found["notes"])


def test_tuning_budget_is_read_from_the_study(tmp_path: Path) -> None:
    runs = run_records(tmp_path / "runs", {"flow": 1.0, "repa": 2.2})
    write_atomic(runs / "study.toml", b"[tuning.flow]\ntrials = 4\n[tuning.repa]\ntrials = 40\n")
    found = run_audit(str(claim_file(tmp_path, **CHANGES)), str(runs))
    assert reason_names(found) == ["tuning"] and "flow 4, repa 40" in found["reasons"][0]
