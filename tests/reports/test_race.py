"""A complete race: recovery of known speed-ups, verdicts, caveats, and errors for invalid inputs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from harness.errors import UserError
from reports.race.race import read_race
from reports.race.verdict import caveats_of, sentence
from tests.reports.synthetic import METRIC, PHASES, power_law, write_race, write_run

SLOPE = 0.5
STEP_SECONDS = sum(PHASES.values())


def exact(
    folder: Path, factors: dict[str, float], *, seeds: int = 3, target_at: float = 1000.0, **run
) -> tuple[Path, float]:
    """Write noise-free power laws; return the folder and the target.

    Arm `m` reaches the target at step `target_at / factors[m]` for seed 0, and slightly earlier for others.
    """
    target = power_law(1000.0, SLOPE)(target_at)
    for method, factor in factors.items():
        for seed in range(seeds):
            metric = power_law(1000.0 * (factor * (1 + 0.01 * seed)) ** -SLOPE, SLOPE)
            write_run(folder / f"{method}-{seed}", method, seed, metric=metric, **run)
    return folder, target


def test_known_speed_up_is_recovered_on_every_axis(tmp_path: Path) -> None:
    """Half the steps, each with 1.5x the FLOPs and 1.25x the seconds: 2, 2, 4/3 and 1.6."""
    exact(tmp_path, {"flow": 1.0})
    slower = {name: 1.25 * value for name, value in PHASES.items()}
    _, target = exact(tmp_path, {"repa": 2.0}, flops=1_500_000, phases=slower)
    race = read_race([tmp_path], target=target)
    found = {axis: race.speedups[axis, "repa"] for axis in race.axes}
    assert {axis: gain.estimate for axis, gain in found.items()} == pytest.approx(
        {"steps": 2.0, "images": 2.0, "flops": 2 / 1.5, "seconds": 2 / 1.25}
    )
    assert all(gain.low == pytest.approx(gain.high) and gain.n == 3 for gain in found.values())
    mean = 1000 / (1.01 * 1.02) ** (1 / 3)
    assert race.times["steps", "flow"].estimate == pytest.approx(mean)
    assert race.times["seconds", "flow"].estimate == pytest.approx(mean * STEP_SECONDS)
    assert race.leaders == dict.fromkeys(race.axes, "repa")


def test_sentence_names_winner_speed_up_and_interval(tmp_path: Path) -> None:
    race = read_race(
        [write_race(tmp_path, {"flow": 1, "repa": 1.0, "self_flow": 1.6}, noise=0.02)], target=20
    )
    gain, level = race.speedups["steps", "self_flow"], race.speedups["steps", "repa"]
    assert gain.direction == "faster" and level.direction == "unresolved"
    assert sentence(race, "steps") == (
        f"self_flow reached fd:local ≤ 20 first: {gain.estimate:.2f}x fewer steps than flow "
        f"[{gain.low:.2f}, {gain.high:.2f}] "
        f"(95 %, n = 3 pairs); repa {level.estimate:.2f}x [{level.low:.2f}, {level.high:.2f}], unresolved."
    )
    assert f"{gain.estimate:.2f}x fewer FLOPs than flow" in sentence(race, "flops")


def test_sentence_names_unresolved_lead(tmp_path: Path) -> None:
    race = read_race([write_race(tmp_path, {"flow": 1, "repa": 1.6, "self_flow": 1.62})], target=20)
    text = sentence(race, "steps")
    leader = race.leaders["steps"]
    other = {"repa": "self_flow", "self_flow": "repa"}[leader]
    assert text.startswith(f"{leader} reached fd:local ≤ 20 first on average: ")
    assert f"Its lead over {other} (" in text and text.endswith("is unresolved.")


def test_sentence_names_the_baseline_when_it_wins(tmp_path: Path) -> None:
    race = read_race([write_race(tmp_path, {"flow": 1, "repa": 0.6}, noise=0.01)], target=20)
    text = sentence(race, "steps")
    assert text.startswith("flow reached fd:local ≤ 20 first. Speed-up over it in steps: repa 0.")
    assert "slower" in text and "n = 3 pairs" in text


def test_sentence_reports_no_interval_for_a_single_pair(tmp_path: Path) -> None:
    folder, target = exact(tmp_path, {"flow": 1.0, "repa": 2.0}, seeds=1)
    race = read_race([folder], target=target)
    assert "2.00x fewer steps than flow, unresolved (n = 1 pair: no interval)" in sentence(race, "steps")
    assert any(note.startswith("n = 1 is too small") for note in caveats_of(race))


def test_interval_is_open_above_when_the_baseline_never_reaches_the_target(tmp_path: Path) -> None:
    folder, target = exact(tmp_path, {"flow": 1.0, "repa": 4.0}, target_at=4000.0)
    race = read_race([folder], target=target)
    gain = race.speedups["steps", "repa"]
    assert gain.high == math.inf and gain.censored_baseline == 3
    # 2000 steps against 1000.
    assert gain.estimate == pytest.approx(2 * (1.01 * 1.02) ** (1 / 3))
    assert ", ∞)" in sentence(race, "steps")
    assert any("3 of 3 runs of flow never reached" in note for note in caveats_of(race))


def test_times_beyond_the_smallest_budget_are_censored_and_reported(tmp_path: Path) -> None:
    """The baseline's steps are 3x faster: its budget in seconds ends before the candidate's time."""
    _, target = exact(tmp_path, {"flow": 1.0})
    exact(tmp_path, {"repa": 1.0}, phases={name: 3 * value for name, value in PHASES.items()})
    race = read_race([tmp_path], target=target)
    gain = race.speedups["seconds", "repa"]
    assert (gain.low, gain.censored_candidate) == (0.0, 3) and gain.high < 1
    assert race.times["seconds", "repa"].right == 0
    start = "In training seconds, 3 of 6 times to target exceed the smallest budget"
    assert [note.startswith(start) for note in caveats_of(race)].count(True) == 1


def test_no_leader_when_no_run_reaches_the_target(tmp_path: Path) -> None:
    folder, _ = exact(tmp_path, {"flow": 1.0, "repa": 2.0})
    race = read_race([folder], target=1e-3)
    assert sentence(race, "steps") == "No run reached fd:local ≤ 0.001."
    assert race.speedups["steps", "repa"].estimate is None and race.leaders == {}


def test_target_defaults_to_what_every_run_reaches(tmp_path: Path) -> None:
    folder, _ = exact(tmp_path, {"flow": 1.0, "repa": 2.0})
    race = read_race([folder])
    last = max(run.curve.fitted[-1] for run in race.runs)
    assert last <= race.target <= last * 1.01 and not race.target_given
    assert all(run.crossing.censored is None for run in race.runs)
    assert any("chosen after the fact" in note for note in caveats_of(race))


def test_arguments_override_the_study(tmp_path: Path) -> None:
    folder, target = exact(tmp_path, {"flow": 1.0, "repa": 2.0})
    (folder / "study.toml").write_text(
        f'name = "digits"\nbaseline = "repa"\n[target]\nmetric = "{METRIC}"\nvalue = {target}\n'
    )
    race = read_race([folder])
    assert (race.name, race.baseline, race.target, race.target_given) == ("digits", "repa", target, True)
    assert race.speedups["steps", "flow"].estimate == pytest.approx(0.5)
    assert read_race([folder], baseline="flow", target=33.0).target == 33.0


def test_baseline_defaults_to_first_planned_arm(tmp_path: Path) -> None:
    """The plan of an ablation starts with the full method, whose label would come last."""
    for number, ratio in enumerate((0.25, 0.0)):
        write_run(tmp_path / f"run-{number}", "self_flow", set_={"method.mask_ratio": ratio})
    (tmp_path / "study.toml").write_text('name = "ablation"\nbaseline = "self_flow"\n')
    for order, ratio in (((0, 1), "0.25"), ((1, 0), "0")):
        runs = [{"id": f"run-{number}", "cell": {"seed": 0}} for number in order]
        (tmp_path / "plan.json").write_text(json.dumps({"runs": runs}))
        assert read_race([tmp_path]).baseline == f"self_flow (mask_ratio = {ratio})"


def test_failed_missing_and_unplanned_runs_are_reported_and_excluded(tmp_path: Path) -> None:
    folder, target = exact(tmp_path, {"flow": 1.0, "repa": 2.0})
    write_run(folder / "repa-3", "repa", 3, status="failed")
    write_run(folder / "repa-4", "repa", 4, status="stopped")
    write_run(folder / "stray", "flow", 9)
    planned = [run.name for run in folder.iterdir() if run.name != "stray"] + ["flow-3"]
    cells = [
        {"id": name, "cell": {"method.name": name.split("-")[0], "seed": int(name[-1])}}
        for name in sorted(planned)
    ]
    (folder / "plan.json").write_text(json.dumps({"runs": cells}))
    race = read_race([folder], target=target)
    assert [run.id for run in race.missing] == ["flow-3"]
    assert race.speedups["steps", "repa"].n == 3
    notes = " ".join(caveats_of(race))
    assert (
        "1 failed, 1 stopped, 1 missing of 9 runs" in notes
        and "Excluded because they are not in the plan: stray." in notes
    )


def test_runs_under_different_protocols_are_not_compared(tmp_path: Path) -> None:
    _, target = exact(tmp_path, {"flow": 1.0})
    exact(tmp_path, {"repa": 2.0}, protocol="another")
    race = read_race([tmp_path], target=target)
    assert race.speedups == {} and sentence(race, "steps").startswith(
        "Inconclusive: the runs were evaluated under different"
    )


def test_seconds_are_left_out_when_hardware_differs(tmp_path: Path) -> None:
    _, target = exact(tmp_path, {"flow": 1.0})
    exact(tmp_path, {"repa": 2.0}, environment={"threads": 2})
    race = read_race([tmp_path], target=target)
    assert race.axes == ("steps", "images", "flops")
    assert any("x86_64, threads: 1; cpu x86_64, threads: 2" in note for note in caveats_of(race))


def test_device_time_is_an_axis_when_runs_use_several_devices(tmp_path: Path) -> None:
    _, target = exact(tmp_path, {"flow": 1.0})
    exact(tmp_path, {"repa": 2.0}, environment={"devices": 4})
    race = read_race([tmp_path], target=target)
    assert race.speedups["gpu_seconds", "repa"].estimate == pytest.approx(0.5)
    assert race.speedups["seconds", "repa"].estimate == pytest.approx(2.0)


def test_caveats_warn_about_curves_that_get_worse_again(tmp_path: Path) -> None:
    folder, _ = exact(tmp_path, {"flow": 1.0})
    for seed in range(3):
        dip = lambda step, seed=seed: 20.0 + seed if step == 500 else 1000 * step**-0.5  # noqa: E731
        write_run(folder / f"repa-{seed}", "repa", seed, metric=dip)
    race = read_race([folder], target=30.0)
    assert any("repa against flow: curves get worse again" in note for note in caveats_of(race))


def test_caveats_name_a_locally_trained_encoder_once(tmp_path: Path) -> None:
    what = "a small encoder trained locally on the training split, not the published one."
    exact(tmp_path, {"flow": 1.0})
    exact(tmp_path, {"repa": 2.0}, set_={"method.encoder.name": "local:small"})
    assert f"repa aligns to local:small: {what}" in caveats_of(read_race([tmp_path]))
    exact(tmp_path, {"gram": 2.0}, set_={"method.encoder.name": "local:small"})
    assert f"gram, repa align to local:small: {what}" in caveats_of(read_race([tmp_path]))


def test_caveats_name_arms_that_never_reach_the_target_together(tmp_path: Path) -> None:
    folder, _ = exact(tmp_path, {"flow": 1.0, "repa": 2.0})
    (caveat,) = [note for note in caveats_of(read_race([folder], target=1e-9)) if "never reached" in note]
    assert caveat.startswith("3 of 3 runs each of flow, repa never reached")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"metric": "fd:locl"}, r"unknown metric 'fd:locl' \(known: fd:local\). Did you mean 'fd:local'\?"),
        ({"baseline": "rep"}, r"unknown baseline 'rep'.*Did you mean 'repa'\?"),
        ({"target": -1.0}, "target -1: expected a number above 0"),
        ({"target": math.nan}, "target nan: expected a number above 0"),
    ],
)
def test_read_race_names_invalid_arguments(tmp_path: Path, given: dict, message: str) -> None:
    exact(tmp_path, {"flow": 1.0, "repa": 2.0}, seeds=1)
    with pytest.raises(UserError, match=message):
        read_race([tmp_path], **given)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("study.toml", "name = ", "is not TOML"),
        ("study.toml", "target = 12", "target must be a table"),
        ("study.toml", "[target]\nvalue = 'low'", "target.value = 'low': expected a number above 0"),
        ("study.toml", "baseline = 3", "baseline = 3: expected"),
        ("plan.json", "[1]", "is not a plan"),
        ("plan.json", '{"runs": [{"id": "a"}]}', "is not a plan"),
        ("flow-0/events.jsonl", "{}\n", "line 1 is not an event"),
    ],
)
def test_read_race_names_invalid_files(tmp_path: Path, file: str, content: str, message: str) -> None:
    exact(tmp_path, {"flow": 1.0}, seeds=1)
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=message):
        read_race([tmp_path])


def test_read_race_rejects_folders_without_runs_or_evaluations(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no runs in"):
        read_race([tmp_path])
    with pytest.raises(UserError, match="no such folder"):
        read_race([tmp_path / "nowhere"])
    record = write_run(tmp_path / "a", grid=(10,))
    lines = (record.path / "events.jsonl").read_bytes().splitlines(keepends=True)
    (record.path / "events.jsonl").write_bytes(lines[0])
    with pytest.raises(UserError, match="no run has been evaluated yet"):
        read_race([tmp_path])


def test_unfinished_runs_have_curves_but_no_times(tmp_path: Path) -> None:
    exact(tmp_path, {"flow": 1.0, "repa": 2.0}, status="stopped")
    race = read_race([tmp_path])
    assert race.target is None and race.speedups == {} and race.times == {}
    assert sentence(race, "steps").startswith("No run has finished yet")
    assert all(run.evaluated for run in race.runs)
