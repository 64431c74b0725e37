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
