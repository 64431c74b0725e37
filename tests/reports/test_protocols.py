"""The protocol of one metric among several: only what the metric depends on makes runs incomparable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.evaluation.protocol import digest
from harness.records.record import Record
from reports.race.protocols import narrowed, protocols_of
from reports.race.race import read_race
from tests.reports.synthetic import write_run

ALONE = {
    "metrics": ["fd:local"],
    "n_fake": 400,
    "shape": [32, 32],
    "extractors": {"local": {"sha256": "5d"}},
    "settings": {},
}
JOINT = ALONE | {
    "metrics": ["fd:video:local", "fd:local", "kid:local", "sync"],
    "shape": [1, 8, 16, 16],
    "beside": [[32, 32]],
    "extractors": {"video:local": {"sha256": "ff"}, "local": {"sha256": "5d"}},
    "settings": {"kid": {"subsets": 100}},
    "truths": {"sync": {"within": 1.0}},
}


def test_narrowed_protocol_of_a_joint_sample_equals_that_of_the_part_alone() -> None:
    assert narrowed(JOINT, "fd:local") == ALONE == narrowed(ALONE, "fd:local")
    assert narrowed(JOINT, "fd:video:local")["shape"] == [1, 8, 16, 16]
    assert narrowed(JOINT, "kid:local")["settings"] == {"kid": {"subsets": 100}}


def test_narrowed_protocol_keeps_all_parts_when_the_metric_needs_no_network() -> None:
    found = narrowed(JOINT, "sync")
    assert found["truths"] == {"sync": {"within": 1.0}} and not found["extractors"]
    assert (found["shape"], found["beside"]) == ([1, 8, 16, 16], [[32, 32]])


def test_narrowed_protocol_of_a_time_or_part_keeps_what_its_metric_depends_on() -> None:
    truths = {"sync": {"within": 1.0}, "loss:held_out": {"samples": 7}}
    for name in ("loss:held_out", "loss:held_out@0.125", "loss:held_out/video"):
        assert narrowed(JOINT | {"truths": truths}, name)["truths"] == {"loss:held_out": {"samples": 7}}
    assert narrowed(JOINT | {"truths": truths}, "sync")["truths"] == {"sync": {"within": 1.0}}


@pytest.mark.parametrize(
    "change",
    [{"n_fake": 500}, {"extractors": {"local": {"sha256": "6e"}}}, {"shape": [32, 64]}],
)
def test_narrowed_protocol_differs_when_the_metric_depends_on_the_change(change: dict[str, Any]) -> None:
    assert narrowed(ALONE | change, "fd:local") != narrowed(JOINT, "fd:local")


def write_evaluated(folder: Path, protocol: dict[str, Any] | None) -> Record:
    """Write a run with the hash of its evaluation protocol, and the protocol itself unless it is None."""
    evaluation: dict[str, Any] = {"hash": "h" if protocol is None else digest(protocol)}
    if protocol is not None:
        evaluation["protocol"] = protocol
    write_run(folder, folder.name, 0, environment={"evaluation": evaluation}, protocol=evaluation["hash"])
    return Record(folder)


def test_protocol_hash_equals_that_of_a_run_with_this_metric_alone(tmp_path: Path) -> None:
    alone = json.loads(json.dumps(ALONE))
    runs = [write_evaluated(tmp_path / name, p) for name, p in (("a", alone), ("b", JOINT))]
    found = [protocols_of(run, "fd:local") for run in runs]
    assert found[0] == found[1] == {digest(alone): ALONE}
    assert protocols_of(write_evaluated(tmp_path / "c", None), "fd:local") == {"h": {"hash": "h"}}


def test_joint_run_is_compared_with_a_run_of_sound_alone(tmp_path: Path) -> None:
    write_evaluated(tmp_path / "flow", ALONE)
    write_evaluated(tmp_path / "repa", JOINT)
    assert read_race([tmp_path], target=30).speedups
    write_evaluated(tmp_path / "sra", JOINT | {"n_fake": 1})
    assert not read_race([tmp_path], target=30).speedups


def test_protocol_of_success_is_that_of_its_task_and_not_of_the_data() -> None:
    about = {"task": "open-and-place", "version": "1", "first": 100_000}
    robot = {"metrics": ["success@open-and-place"], "sampler": "euler", "sampler_steps": 5, "n_fake": 100}
    robot |= {"n_real": 50, "data": "0b7e", "truths": {"success@open-and-place": about, "loss:held_out": {}}}
    more = robot | {"n_real": 200, "data": "9cec", "metrics": ["success@open-and-place", "loss:held_out"]}
    found = [narrowed(one, "success@open-and-place/placed") for one in (robot, more)]
    assert found[0] == found[1] and found[0]["truths"] == {"success@open-and-place": about}
    assert narrowed(robot | {"sampler_steps": 9}, "success@open-and-place/placed") != found[0]


def test_race_to_success_is_won_by_the_arm_that_reaches_it_first(tmp_path: Path) -> None:
    for method, scale in (("flow", 0.002), ("repa", 0.004)):
        for seed in (0, 1, 2):
            write_run(
                tmp_path / f"{method}{seed}",
                method,
                seed,
                metric=lambda _: 1.0,
                others={"success@pusht": lambda step, scale=scale: 1 - 1 / (1 + scale * step)},
            )
    race = read_race([tmp_path], metric="success@pusht", target=0.75, baseline="flow")
    assert (race.metric, race.target) == ("1-success@pusht", 0.25)
    # 1 / (1 + scale * step) = 0.25 at steps 1,500 and 750.
    assert race.speedups["steps", "repa"].estimate == pytest.approx(2, rel=0.01)
    shortfall = read_race([tmp_path], metric="1-success@pusht", target=0.25, baseline="flow")
    assert shortfall.speedups == race.speedups
