"""Races, registers, golden files and prompts of strangers: read or refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from harness.errors import UserError
from harness.records.study_folder import StudyFolder
from tests.fuzz.door import SLOW, Door, fuzz
from tests.fuzz.race_doors import META, RACES, from_golden, from_raced, golden_tensors, linked, write_raced


@pytest.mark.parametrize("door", RACES, ids=lambda door: door.name)
def test_mutated_race_is_read_or_refused(door: Door) -> None:
    fuzz(door, door.cases)


@pytest.mark.slow
@pytest.mark.parametrize("door", RACES, ids=lambda door: door.name)
def test_a_thousand_mutations_of_races_are_read_or_refused(door: Door) -> None:
    fuzz(door, SLOW)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    write_raced(found := tmp_path_factory.mktemp("race"))
    return found


@pytest.mark.parametrize(
    "change",
    [
        {"times": []},
        {"times": {"9" * 5000: [[1.0, None]]}},
        {"times": {"0": None}},
        {"speedup": []},
        {"speedup": [2.0, None, None, None]},
        {"factor": [1.3]},
        {"arms": 3},
    ],
    ids=lambda change: str(change)[:40],
)
def test_look_of_another_shape_is_an_altered_log(folder: Path, change: dict[str, Any]) -> None:
    """Its hash fits: whoever writes a log can compute it."""
    file = StudyFolder(folder / "runs").looks_file
    content = file.read_bytes()
    rows = [json.loads(line) for line in content.splitlines()]
    rows[0]["claims"][0].update(change)
    file.write_bytes(linked(b"\n".join(json.dumps(row).encode() for row in rows)))
    try:
        with pytest.raises(UserError, match="line 1 was altered"):
            from_raced(folder)
    finally:
        file.write_bytes(content)


def test_golden_file_with_a_weight_that_is_no_number_is_reported_in_json(tmp_path: Path) -> None:
    tensors = golden_tensors()
    tensors["out.euler"][0] = float("nan")
    save_file(tensors, tmp_path / "mmdit.safetensors", META)
    assert all(number >= 0 for number in from_golden(tmp_path / "mmdit.safetensors"))
