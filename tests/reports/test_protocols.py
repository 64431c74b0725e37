"""Protocols of one metric among several: what other metrics need does not part runs, what this one needs
does."""

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


def test_a_part_of_a_joint_sample_is_measured_as_the_part_alone() -> None:
    assert narrowed(JOINT, "fd:local") == ALONE == narrowed(ALONE, "fd:local")
    assert narrowed(JOINT, "fd:video:local")["shape"] == [1, 8, 16, 16]
    assert narrowed(JOINT, "kid:local")["settings"] == {"kid": {"subsets": 100}}


def test_a_metric_of_samples_themselves_sees_all_of_them() -> None:
    found = narrowed(JOINT, "sync")
    assert found["truths"] == {"sync": {"within": 1.0}} and not found["extractors"]
    assert (found["shape"], found["beside"]) == ([1, 8, 16, 16], [[32, 32]])


@pytest.mark.parametrize(
    "change",
    [{"n_fake": 500}, {"extractors": {"local": {"sha256": "6e"}}}, {"shape": [32, 64]}],
)
def test_what_the_metric_depends_on_parts_runs(change: dict[str, Any]) -> None:
    assert narrowed(ALONE | change, "fd:local") != narrowed(JOINT, "fd:local")


def tell(folder: Path, protocol: dict[str, Any] | None) -> Record:
    """A record whose evaluations carry the hash of a protocol, and tell it or not."""
    about = {"hash": "h" if protocol is None else digest(protocol)}
    told = about if protocol is None else about | {"protocol": protocol}
    write_run(folder, folder.name, 0, environment={"evaluation": told}, protocol=about["hash"])
    return Record(folder)


def test_the_hash_is_that_of_a_run_with_this_metric_alone(tmp_path: Path) -> None:
    alone = json.loads(json.dumps(ALONE))
    found = [protocols_of(tell(tmp_path / name, p), "fd:local") for name, p in (("a", alone), ("b", JOINT))]
    assert found[0] == found[1] == {digest(alone): ALONE}
    assert protocols_of(tell(tmp_path / "c", None), "fd:local") == {"h": {"hash": "h"}}


def test_a_joint_run_and_its_sound_alone_are_compared(tmp_path: Path) -> None:
    tell(tmp_path / "flow", ALONE)
    tell(tmp_path / "repa", JOINT)
    assert read_race([tmp_path], target=30).speedups
    tell(tmp_path / "sra", JOINT | {"n_fake": 1})
    assert not read_race([tmp_path], target=30).speedups
