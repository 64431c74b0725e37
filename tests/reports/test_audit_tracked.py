"""The audit of an MLflow store: mirrored runs, and runs that other tools logged."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from harness.errors import UserError
from reports.audit.audit import audit_claim
from reports.audit.inputs.read import read_logs
from reports.stats.curves import AXES
from tests.reports.audits import claim, falling
from tests.reports.synthetic import METRIC, write_run
from tests.support.tracked import logged

NewStore = Callable[[Path], str]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore) -> Path:
    """A mirrored study `race`, and an experiment `theirs` with runs of another project."""
    from mlflow import MlflowClient

    from harness.records.mlflow_mirror import mirror

    folder = tmp_path_factory.mktemp("store")
    uri = new_store(folder / "mlflow.db")
    records = []
    for seed in range(3):
        for method, speed in (("flow", 1.0 + 0.01 * seed), ("repa", 2.2 + 0.03 * seed)):
            path = folder / "runs" / f"{method}-{seed}"
            curve = lambda s, v=speed: falling(v)(100 * s)  # noqa: E731
            write_run(
                path,
                method,
                seed,
                metric=curve,
                grid=range(200, 2001, 200),
                environment={"started": 1_000_000},
            )
            records.append(path)
    from harness.records.record import Record

    mirror([Record(path) for path in records], uri=uri, study="race", complete=True)
    client = MlflowClient(tracking_uri=uri)
    theirs = client.create_experiment("theirs")
    for seed in range(3):
        for method, speed in (("old", 1.0), ("new", 2.2 + 0.05 * seed)):
            params = {"method": method, "seed": seed, "protocol": "sde" if method == "new" else "ode"}
            logged(client, theirs, params, fid(speed, range(20_000, 400_001, 20_000)))
    return folder


def fid(speed: float, steps: Iterable[int]) -> list[tuple[str, float, int]]:
    return [("fid", falling(speed)(step or 1), step) for step in steps]


def test_mirrored_study_is_audited_like_its_records(store: Path) -> None:
    judged_claim = claim(candidate="repa", baseline="flow", metric=METRIC, axis="flops")
    tracked = audit_claim(judged_claim, read_logs([f"sqlite:///{store}/mlflow.db#race"], judged_claim))
    recorded = audit_claim(judged_claim, read_logs([str(store / "runs")], judged_claim))
    assert tracked.verdict == recorded.verdict == "supported"
    for axis in AXES:
        assert tracked.gains[axis].estimate == pytest.approx(recorded.gains[axis].estimate, rel=1e-9)
        assert tracked.gains[axis].low == pytest.approx(recorded.gains[axis].low, rel=1e-9)
    assert tracked.logs.baseline[0].started == recorded.logs.baseline[0].started


def test_metric_of_a_custom_network_is_found(tmp_path: Path, new_store: NewStore) -> None:
    """Its name has characters that MLflow does not allow."""
    from harness.records.mlflow_mirror import mirror
    from harness.records.record import Record

    named = "fd:torchscript@d7826800?size=8"
    for seed in range(3):
        for method, speed in (("flow", 1.0 + 0.01 * seed), ("repa", 2.2 + 0.03 * seed)):
            curve = {named: lambda s, v=speed: falling(v)(100 * s)}
            write_run(tmp_path / f"{method}-{seed}", method, seed, others=curve, grid=range(200, 2001, 200))
    uri = new_store(tmp_path / "mlflow.db")
    mirror(
        [Record(path.parent) for path in sorted(tmp_path.glob("*/spec.toml"))],
        uri=uri,
        study="race",
        complete=True,
    )
    judged_claim = claim(candidate="repa", baseline="flow", metric=named, axis="flops")
    tracked, recorded = (
        audit_claim(judged_claim, read_logs([where], judged_claim)) for where in (uri, str(tmp_path))
    )
    assert tracked.verdict == recorded.verdict == "supported"
    assert tracked.gain.estimate == pytest.approx(recorded.gain.estimate, rel=1e-9)


def test_hardware_and_alignment_of_mirrored_runs_count(tmp_path: Path, new_store: NewStore) -> None:
    """One arm ran on another machine, and was aligned to the network of the metric."""
    from harness.records.mlflow_mirror import mirror
    from harness.records.record import Record

    environment = {"device": "cuda", "device_name": "H200", "devices": 2, "evaluation": {"aligned": [METRIC]}}
    for seed in range(3):
        for method, about in (("flow", {}), ("repa", environment)):
            write_run(tmp_path / f"{method}-{seed}", method, seed, environment=about)
    uri = new_store(tmp_path / "mlflow.db")
    mirror(
        [Record(path.parent) for path in sorted(tmp_path.glob("*/spec.toml"))],
        uri=uri,
        study="race",
        complete=True,
    )
    judged_claim = claim(candidate="repa", baseline="flow", metric=METRIC, target=40.0, axis="seconds")
    tracked = audit_claim(judged_claim, read_logs([uri], judged_claim))
    recorded = audit_claim(judged_claim, read_logs([str(tmp_path)], judged_claim))
    assert {"hardware", "aligned"} <= {reason.name for reason in tracked.reasons}
    assert tracked.reasons == recorded.reasons
    seconds, devices = (tracked.logs.candidate[0].costs.totals[axis] for axis in ("seconds", "gpu_seconds"))
    assert devices == pytest.approx(2 * seconds)


def test_failed_run_is_censored_unless_it_was_rerun(tmp_path: Path, new_store: NewStore) -> None:
    """Seed 0 of the candidate failed and was rerun. Seed 2 failed at step 40k and was not.

    Seed 3 then fails before its first evaluation, which makes the audit inconclusive.
    """
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(uri := new_store(tmp_path / "mlflow.db")))
    group = client.create_experiment("theirs")
    runs = [(m, seed, 400_001, "FINISHED") for m in ("old", "new") for seed in range(3)]
    runs[-1] = ("new", 2, 40_001, "FAILED")
    for method, seed, end, status in [*runs, ("new", 0, 40_001, "FAILED"), ("new", 0, 60_001, "FAILED")]:
        curve = fid(1 if method == "old" else 2.2, range(20_000, end, 20_000))
        logged(client, group, {"method": method, "seed": seed}, curve, status)
    judged_claim = claim()
    found = audit_claim(judged_claim, read_logs([uri], judged_claim))
    assert found.gain.n == 3 and found.gain.censored_candidate == 1 and found.gain.low == 0
    assert [log.failed for log in found.logs.candidate.values()] == [False, False, True]
    assert "new seed 0 failed before; its finished run counts." in found.notes and len(found.notes) == 2
    logged(client, group, {"method": "new", "seed": 3}, [], "FAILED")
    unseen = audit_claim(judged_claim, read_logs([uri], judged_claim))
    assert unseen.verdict == "inconclusive" and unseen.reasons[0].name == "failed"


def test_runs_of_other_tools_are_audited(store: Path) -> None:
    judged_claim = claim()
    found = audit_claim(judged_claim, read_logs([f"sqlite:///{store}/mlflow.db"], judged_claim))
    assert found.verdict == "inconclusive" and found.reasons[0].name == "protocol"
    assert found.reasons[0].text == "evaluations differ in protocol (ode, sde)"


@pytest.mark.parametrize(
    ("fragment", "changes", "message"),
    [
        ("#rase", {}, "unknown experiment 'rase'.*Did you mean 'race'"),
        ("#race", {}, "unknown method in .*: 'old'"),
        ("", {"metric": "fdd"}, "no finished run of old or new in .* has the metric 'fdd'"),
    ],
)
def test_unknown_name_in_a_store_is_rejected(store: Path, fragment: str, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_logs([f"sqlite:///{store}/mlflow.db{fragment}"], claim(**changes))


def test_file_that_is_not_a_store_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("hello, this is no database at all" * 20)
    with pytest.raises(UserError, match="cannot read"):
        read_logs([f"sqlite:///{tmp_path}/x.db"], claim())


def test_incomplete_logs_of_other_tools_are_audited(tmp_path: Path, new_store: NewStore) -> None:
    """A value at MLflow's default step only, a batch size as text, and a resumed run with fewer devices."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(uri := new_store(tmp_path / "mlflow.db")))
    group = client.create_experiment("theirs")
    devices = json.dumps([{"device": "cuda", "devices": 8}, {"device": "cuda", "devices": 1}])
    for seed in range(4):
        for method in ("old", "new"):
            params = {"method": method, "seed": seed, "train.batch_size": "256x8"}
            steps = range(20_000, 400_001, 20_000) if seed < 3 else [0]
            seconds = [("cost/seconds/student", 0.1 * step, step) for step in steps]
            curve = fid(1 if method == "old" else 2.2, steps)
            logged(client, group, params, curve + seconds, tags={"flowrace.hardware": devices})
    judged_claim = claim()
    found = audit_claim(judged_claim, read_logs([uri], judged_claim))
    assert found.verdict == "supported" and set(found.gains) == {"steps", "seconds"}
    assert sum("at step 0 only" in note for note in found.notes) == 2
