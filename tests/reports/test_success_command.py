"""`flowrace success` on written records, against counts by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from harness.errors import UserError
from harness.records.rollouts import Conditions, Episode, recording
from reports.analysis.success import compare, read_arm
from tests.support.commands import flowrace

STAGES: tuple[str, ...] = ("opened", "placed", "both")


def written(folder: Path, opened: list[int], both: list[int], first: int = 100_000, **other: object) -> Path:
    """Write a rollout whose episodes open and place at these steps; 0 is never."""
    about: dict = {"task": "open-and-place", "version": "1", "stages": STAGES, "horizon": 120}
    about |= {"policy": folder.name, "first": first, "noise": 0, "batch": 50} | other
    with recording(folder, Conditions(**about)) as record:
        for row, steps in enumerate(zip(opened, both, strict=True)):
            held = dict(zip(STAGES, (steps[0] or None, steps[1] or None, steps[1] or None), strict=True))
            success = steps[1] > 0
            record.add(Episode(first + row, success, steps[1] or 120, held, float(success), "0"))
    return folder


def drawn(folder: Path, seed: int, chance: float, run_seed: int) -> Path:
    """Write a run of one training seed with a rollout of 40 starts."""
    rng = np.random.default_rng(seed)
    both = (rng.random(40) < chance).astype(int) * 30
    run = folder / f"run{run_seed}"
    written(run / "rollouts" / "open-and-place-x", [20] * 40, both.tolist())
    (run / "spec.toml").write_text(f"seed = {run_seed}\n")
    return run


def test_two_networks_are_compared_by_the_exact_test(tmp_path: Path) -> None:
    first = written(tmp_path / "a", [10] * 12, [30] * 9 + [0] * 3)
    second = written(tmp_path / "b", [10] * 12, [30] * 2 + [0] * 10)
    found = json.loads(flowrace("success", first, "--against", second, "--json").output)
    pair = found["success"]["pairs"]["0"]
    assert (pair["only_first"], pair["only_second"], pair["n"]) == (7, 0, 12)
    assert pair["p"] == pytest.approx(binomtest(7, 7).pvalue)
    interval = binomtest(9, 12).proportion_ci(method="wilson")
    assert found["success"]["first"]["low"] == pytest.approx(interval.low)
    assert found["success"]["direction"] == "more" and found["opened"]["direction"] == "unresolved"
    assert found["success"]["difference"]["low"] is None
    printed = flowrace("success", second, "--against", first).output
    assert "the first arm succeeds less often, for these two networks; other training seeds" in printed


def test_runs_are_paired_by_training_seed_and_have_an_interval_over_both_levels(tmp_path: Path) -> None:
    arms = [
        [drawn(tmp_path / name, 10 * number + run, chance, run) for run in (2, 0, 1)]
        for number, (name, chance) in enumerate((("a", 0.8), ("b", 0.3)))
    ]
    against = [word for run in arms[1] for word in ("--against", run)]
    found = json.loads(flowrace("success", *arms[0], *against, "--json").output)["success"]
    assert list(found["pairs"]) == ["0", "1", "2"]
    assert (found["difference"]["seeds"], found["difference"]["starts"]) == (3, 40)
    assert 0 < found["difference"]["low"] < found["difference"]["mean"] and found["direction"] == "more"
    assert found["difference"]["mean"] == pytest.approx(found["first"]["mean"] - found["second"]["mean"])


def test_arms_with_equal_episodes_do_not_differ(tmp_path: Path) -> None:
    runs = [drawn(tmp_path / "a", run, 0.5, run) for run in (0, 1)]
    (success, *_) = compare(read_arm(runs), read_arm(runs))
    assert success.difference.mean == 0 and success.direction == "unresolved"
    assert all(pair.p == 1 for pair in success.pairs.values())


def test_only_starts_that_all_networks_met_are_compared(tmp_path: Path) -> None:
    first = written(tmp_path / "a", [10] * 5, [30] * 5)
    second = written(tmp_path / "b", [10] * 3, [0] * 3)
    (success, *_) = compare(read_arm([first]), read_arm([second]))
    assert success.pairs[0].n == 3 and success.difference.mean == 1


def test_run_is_known_from_inside_the_folder_of_its_rollout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = drawn(tmp_path, 0, 0.5, run_seed=7)
    monkeypatch.chdir(run / "rollouts" / "open-and-place-x")
    assert list(read_arm([Path()])) == [7]


def test_several_training_seeds_need_two_common_starts(tmp_path: Path) -> None:
    runs = [drawn(tmp_path / "a", run, 0.5, run) for run in (0, 1)]
    short = []
    for run in (0, 1):
        folder = tmp_path / f"b{run}"
        written(folder / "rollouts" / "x", [10], [30])
        (folder / "spec.toml").write_text(f"seed = {run}\n")
        short.append(folder)
    with pytest.raises(UserError, match="2 training seeds share 1 start, expected at least 2"):
        compare(read_arm(runs), read_arm(short))
    (success, *_) = compare(read_arm(runs[:1]), read_arm(short[:1]))
    assert success.pairs[0].n == 1


def test_arms_that_cannot_be_compared_are_errors(tmp_path: Path) -> None:
    one = written(tmp_path / "a", [10], [30])
    other = written(tmp_path / "b", [10], [30], horizon=60)
    late = written(tmp_path / "c", [10], [30], first=200_000)
    runs = [drawn(tmp_path / "runs", run, 0.5, run) for run in (1, 2)]
    for words, match in (
        ((one, "--against", other), "the rollouts differ in horizon: 60, 120; roll out all arms alike"),
        ((one, "--against", late), "the rollouts differ in first: 100000, 200000"),
        ((runs[0], "--against", runs[1]), "the arms share no training seed: 1 against 2"),
        ((runs[0], runs[0], "--against", one), "has a rollout of training seed 1 already"),
        ((tmp_path, "--against", one), "has no rollout; run: flowrace rollout"),
        ((runs[0], "--against", one, "--task", "pusht"), "has no rollout of task 'pusht'"),
    ):
        found = flowrace("success", *words)
        assert match in str(found.exception), match
    written(runs[0] / "rollouts" / "second", [10], [30])
    found = flowrace("success", runs[0], "--against", one)
    assert "has 2 rollouts; give one of them" in str(found.exception)
