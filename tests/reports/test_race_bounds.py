"""Limits of a race's claims. Times are censored at the horizon and for early failures. Rising metrics,
targets of another metric, and seconds of arms that were not interleaved are not compared.

The curves are power laws with known times to target.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.errors import UserError
from harness.records.record import Record
from harness.records.record_writer import RecordWriter
from reports.analysis.scaling import encoder_scaling
from reports.cli.audit import audit as command
from reports.race.race import read_race
from reports.race.verdict import caveats_of, sentence
from reports.stats.curves import costs_of
from reports.stats.speedup import Time, cut, speedup
from tests.reports.audits import claim_file, run_audit
from tests.reports.synthetic import ENVIRONMENT, METRIC, power_law, write_run

TIME = (1000 / 30) ** 2
"""The time of PLAIN to the target 30: 1111 of 2000 steps."""


def arms(folder: Path, change: Callable[[str, int], dict], seeds: int = 3) -> Path:
    for seed in range(seeds):
        for method in ("flow", "repa"):
            write_run(folder / f"{method}-{seed}", method, seed, **change(method, seed))
    return folder


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        (Time(50, None), Time(50, None)),
        (Time(150, None), Time(100, "right")),
        (Time(50, "left"), Time(50, "left")),
        (Time(150, "left"), Time(100, "left")),
        (Time(150, "right"), Time(100, "right")),
        (Time(50, "right"), Time(100, "right")),
    ],
)
def test_cut_censors_times_at_the_horizon(time: Time, expected: Time) -> None:
    assert cut(time, 100) == expected


def test_first_evaluation_after_the_horizon_leaves_the_order_unresolved() -> None:
    """The candidate may be faster, but its first evaluation is at 200 and the baseline's budget is 100."""
    base = {seed: Time(70.0 + seed) for seed in range(3)}
    found = speedup(base, {seed: Time(200.0, "left") for seed in range(3)}, 100.0)
    assert found.high == float("inf") and found.low < 1 and found.direction == "unresolved"


def test_early_failure_does_not_make_an_arm_the_leader(tmp_path: Path) -> None:
    """repa is slower in both of its finished pairs."""

    def change(method: str, seed: int) -> dict:
        scale = 1000 * 1.01**seed * (1.05 if method == "repa" else 1)
        failed = (method, seed) == ("repa", 2)
        return {"metric": power_law(scale, 0.5)} | ({"grid": [100], "status": "failed"} if failed else {})

    race = read_race([arms(tmp_path, change)], target=30.0)
    assert set(race.leaders.values()) == {"flow"}
    gain = race.speedups["steps", "repa"]
    assert gain.low == 0 and gain.estimate < 1 and sentence(race, "steps").startswith("flow reached")


def test_failed_runs_have_no_last_value(tmp_path: Path) -> None:
    for size, params in (("tiny", 1e5), ("small", 1e6)):
        about = {"encoders": [{"name": f"local:{size}", "params": int(params)}]}
        for seed in range(3):
            failed = {"grid": [100], "status": "failed"} if (size, seed) == ("small", 2) else {}
            encoder = {"set_": {"method.encoder.name": f"local:{size}"}, "environment": about}
            write_run(tmp_path / f"{size}{seed}", "repa", seed, **encoder, **failed)
    race = read_race([tmp_path], target=40.0, baseline="repa (encoder = local:tiny)")
    final = {point.name: point.final for point in encoder_scaling(race).points}
    for size, n in (("tiny", 3), ("small", 2)):
        mean = final[f"local:{size}"]
        assert mean.n == n and mean.estimate == pytest.approx(power_law(1000, 0.5)(2000))


def test_rising_metric_is_inconclusive(tmp_path: Path) -> None:
    def change(method: str, seed: int) -> dict:
        best = (1.2 if method == "repa" else 1.0) * (1 + 0.005 * seed)
        return {"others": {"recall:inception": lambda step: best * (1 - 0.5 * (step / 100) ** -0.7)}}

    race = read_race([arms(tmp_path, change)], metric="recall:inception", target=0.65)
    assert sentence(race, "steps").startswith("Inconclusive: recall:inception rises")
    assert not race.speedups and not race.leaders


def test_study_target_applies_only_to_its_own_metric(tmp_path: Path) -> None:
    def change(method: str, seed: int) -> dict:
        scale = (0.7 if method == "repa" else 1.0) * 1.01**seed
        return {"metric": power_law(1000 * scale, 0.5), "others": {"kd:local": power_law(0.5 * scale, 0.5)}}

    arms(tmp_path, change)
    (tmp_path / "study.toml").write_text(f'[target]\nmetric = "{METRIC}"\nvalue = 30.0\n')
    assert read_race([tmp_path]).target == 30
    other = read_race([tmp_path], metric="kd:local")
    assert not other.target_given and other.target < 0.02
    assert sentence(other, "steps").startswith("repa reached kd:local")
    assert "chosen after the fact" in caveats_of(other)[0]
    result = CliRunner().invoke(command, ["power", str(tmp_path), "--metric", "kd:local", "--json"])
    assert json.loads(result.stdout)["target"] == other.target


@pytest.mark.parametrize("value", ["nan", "inf", "0", "-1", "true"])
def test_study_target_must_be_a_positive_number(tmp_path: Path, value: str) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "study.toml").write_text(f"[target]\nvalue = {value}\n")
    with pytest.raises(UserError, match=r"target.value = .*: expected a number above 0"):
        read_race([tmp_path])


def test_seconds_are_left_out_when_arms_are_not_interleaved(tmp_path: Path) -> None:
    def change(method: str, seed: int) -> dict:
        return {"environment": {"started": (1 + (method == "repa")) * 1_000_000 + seed}}

    race = read_race([arms(tmp_path, change)], target=30.0)
    assert race.axes == ("steps", "images", "flops")
    assert "one after the other instead of interleaved (flow before repa)" in caveats_of(race)[-1]
    mixed = arms(tmp_path / "interleaved", lambda method, seed: {"environment": {"started": 1000 + seed}})
    assert "seconds" in read_race([mixed], target=30.0).axes


def test_device_seconds_follow_the_devices_of_each_start(tmp_path: Path) -> None:
    """The run takes 1000 steps on eight devices and 1000 on one."""
    record = write_run(tmp_path / "run", environment={"devices": 8})
    late = [event for event in record.events if event["step"] > 1000]
    with RecordWriter(record.path) as again:
        again.begin(ENVIRONMENT | {"devices": 1}, after_step=1000)
        again.append(*late)
        again.finish({"images": 1})
    costs = costs_of(Record(record.path))
    assert costs.budget("gpu_seconds") == pytest.approx(4.5 * costs.budget("seconds"))


def test_order_is_unknown_when_all_runs_start_below_the_target(tmp_path: Path) -> None:
    race = read_race([arms(tmp_path, lambda *_: {})], target=500.0)
    assert sentence(race, "steps").startswith(f"It is unknown who reached {METRIC} ≤ 500 first")


def test_given_target_without_a_finished_run_compares_nothing(tmp_path: Path) -> None:
    race = read_race([arms(tmp_path, lambda *_: {"status": "stopped"})], target=30.0)
    assert sentence(race, "steps").startswith("No run has finished yet")


def test_plan_applies_only_to_its_own_folder(tmp_path: Path) -> None:
    planned, single = tmp_path / "study", tmp_path / "single"
    for seed in range(3):
        write_run(planned / f"flow-{seed}", "flow", seed)
        write_run(planned / f"extra-{seed}", "sra", seed)
        write_run(single / f"repa-{seed}", "repa", seed, metric=power_law(700 * 1.01**seed, 0.5))
    runs = [{"id": f"flow-{s}", "cell": {"method.name": "flow", "seed": s}} for s in range(3)]
    (planned / "plan.json").write_text(json.dumps({"runs": runs}))
    race = read_race([planned, single], target=30.0)
    assert [arm.label for arm in race.arms] == ["flow", "repa"] and len(race.unplanned) == 3
    claim = claim_file(tmp_path, candidate="repa", baseline="flow", metric=METRIC, target=30.0, factor=1.5)
    found = run_audit(str(claim), str(planned), str(single))
    assert found["verdict"] == "supported" and any("extra-0" in note for note in found["notes"])
    assert TIME / race.times["steps", "repa"].estimate == pytest.approx(1 / (0.7 * 1.01) ** 2)
