"""Arms that cannot run on their data: excluded with a reason, which plan, sweep, status and report repeat."""

from __future__ import annotations

import json
import sys
from html import unescape
from pathlib import Path

import pytest
import tomli_w

from harness.assembly.resolve import load_spec
from harness.errors import UserError
from harness.records.record import Record
from sweeps.plan.plan import make_plan
from sweeps.plan.study import load_study
from tests.support.commands import flowrace
from tests.support.modal import MODALITIES, SMALL
from tests.support.runs import TINY

TIMM = "timm:vit_small_patch14_dinov2.lvd142m"
REASON = f"encoder '{TIMM}' reads images, and these data are audio; local:small learns on any data"
ARMS = [
    {"name": "repa", "encoder": {"name": TIMM}},
    {"name": "repa", "encoder": {"name": "local:tiny"}},
    {"name": "flow"},
]


def settings(*overrides: str) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return written(tmp_path / "unsuited.toml", ARMS)


def written(file: Path, arms: list[dict], **more: object) -> Path:
    table = {"name": "unsuited", "base": "tones", "axes": {"seed": [0, 1], "method": arms}, **more}
    file.write_text(tomli_w.dumps(table))
    return file


def test_unsuited_run_is_excluded_and_keeps_other_ids(study: Path, tmp_path: Path) -> None:
    plan = make_plan(load_study(str(study)))
    without = make_plan(load_study(str(written(tmp_path / "without.toml", ARMS[1:])))).runs
    assert [planned.id for planned in plan.runs] == [planned.id for planned in without] and len(without) == 4
    assert [(left.values["seed"], left.values["method"], left.reason) for left in plan.excluded] == [
        (seed, ARMS[0], REASON) for seed in (0, 1)
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_exclusion_reason_reaches_the_report(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The excluded arm has a line in the plan and in the sweep, a count in the status, and a cell in the
    report."""
    stub = Path(__file__).parent / "stub.py"
    monkeypatch.setattr(
        "sweeps.launch.runner.run_command", lambda spec, out: (sys.executable, str(stub), str(spec), str(out))
    )
    line = f"left out: repa encoder.name={TIMM} (2 runs): {REASON}"
    shared = settings(*TINY, *SMALL, *MODALITIES["audio"])
    planned = flowrace("sweep", study, *shared, "--dry-run")
    assert planned.exit_code == 0 and line in planned.stdout.splitlines()
    described = json.loads(flowrace("sweep", study, *shared, "--dry-run", "--json").stdout)
    assert described["left_out"] == [line] and len(described["runs"]) == 4

    out = tmp_path / "out"
    planned_values = flowrace(
        "sweep", study, *shared, "--out", out, "--no-track", "--slots", "1", "--threads", "1"
    )
    assert planned_values.exit_code == 0, planned_values.output
    assert planned_values.stderr.splitlines().count(line) == 1
    done = [Record(run) for run in out.glob("????????????")]
    assert sorted((r.spec["method"]["name"], r.spec["seed"], r.status) for r in done) == [
        ("flow", 0, "done"), ("flow", 1, "done"), ("repa", 0, "done"), ("repa", 1, "done"),
    ]  # fmt: skip
    assert json.loads(flowrace("status", out, "--json").stdout)["counts"] == {"done": 4, "excluded": 2}
    assert f"excluded: {REASON}" in unescape((out / "report.html").read_text())


def test_missing_data_are_still_checked_for_suitability(tmp_path: Path) -> None:
    table = {"name": "disk", "base": "digits", "axes": {"method": [ARMS[0], ARMS[2]]}}
    data = {"data.name": "videos", "data.root": str(tmp_path / "absent"), "eval.metrics": ["fd:video:local"]}
    (tmp_path / "disk.toml").write_text(tomli_w.dumps(table | {"set": data}))
    plan = make_plan(load_study(str(tmp_path / "disk.toml")))
    assert [planned.spec.method.name for planned in plan.runs] == ["flow"]
    assert "reads images, and these data are video" in plan.excluded[0].reason


def test_study_that_excludes_every_run_is_rejected(tmp_path: Path) -> None:
    file = written(tmp_path / "none.toml", ARMS[:1])
    rejected = flowrace("sweep", file, "--out", tmp_path / "out")
    assert isinstance(rejected.exception, UserError) and not (tmp_path / "out").exists()
    assert str(rejected.exception) == f"study unsuited excludes every run: {REASON}"
    with pytest.raises(UserError, match=r"excludes its baseline 'repa': encoder 'timm:.*' reads images"):
        make_plan(load_study(str(written(tmp_path / "base.toml", [ARMS[0], ARMS[2]], baseline="repa"))))


@pytest.mark.slow
def test_unsuited_run_is_not_tuned(tmp_path: Path) -> None:
    tune = {"space": {"train.learning_rate": {"low": 1e-3, "high": 1e-2}}}
    file = written(tmp_path / "tuned.toml", [ARMS[0], ARMS[2]], seeds={"tuning": 2}, tune=tune)
    planned = flowrace("tune", file, "--dry-run", "--json")
    assert planned.exit_code == 0 and list(json.loads(planned.stdout)["methods"]) == ["flow"]
    assert f"left out: repa encoder.name={TIMM} (2 runs): {REASON}" in planned.stderr.splitlines()


def test_unsuited_single_run_is_rejected() -> None:
    with pytest.raises(UserError, match=f"tones: {REASON}"):
        load_spec("tones", ["method.name=repa", f"method.encoder.name={TIMM}"])


def test_invalid_setting_is_an_error_not_an_exclusion(tmp_path: Path) -> None:
    """A setting that is invalid on any data stops the study, whichever arm has it."""
    wrong = {"name": "repa", "encoder": {"name": "local:tiny"}, "layer": 99}
    with pytest.raises(UserError, match="layer = 99: backbone nano has layers 1 to 6"):
        make_plan(load_study(str(written(tmp_path / "wrong.toml", [*ARMS, wrong]))))


def test_part_weights_may_suit_one_arm_only(tmp_path: Path) -> None:
    """REPA's encoder reads one modality: the arm runs on each part of bounce alone, not on both together."""
    axes = {"method": [{"name": "flow"}, {"name": "repa", "encoder": {"name": "local:small"}}]}
    weights = {"data.video_weight": [0.5, 1.0, 0.0], "data.audio_weight": [0.5, 0.0, 1.0]}
    metrics = {"eval.metrics": [["fd:local"], ["fd:video:local"], ["fd:local"]]}
    table = {"name": "parts", "base": "bounce", "axes": axes, "zip": {"weights": {**weights, **metrics}}}
    (tmp_path / "parts.toml").write_text(tomli_w.dumps(table))
    plan = make_plan(load_study(str(tmp_path / "parts.toml")))
    planned_values = [
        (planned.spec.method.name, planned.spec.data.parts.video.weight) for planned in plan.runs
    ]
    assert planned_values == [("flow", 0.5), ("flow", 1.0), ("flow", 0.0), ("repa", 1.0), ("repa", 0.0)]
    [left] = plan.excluded
    assert left.values["data.video_weight"] == 0.5 and "reads one modality" in left.reason
