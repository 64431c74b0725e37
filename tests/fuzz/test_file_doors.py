"""Weights, specs, studies, claims, logs and records of strangers: read or refused in one sentence."""

from __future__ import annotations

import pytest

from tests.fuzz.door import SLOW, Door, fuzz
from tests.fuzz.file_doors import FILES, LOGS


def needed(door: Door) -> None:
    if door.name == "log of events":
        pytest.importorskip("tensorboard")


@pytest.mark.parametrize("door", (*FILES, *LOGS), ids=lambda door: door.name)
def test_mutated_file_is_read_or_refused(door: Door) -> None:
    needed(door)
    fuzz(door, door.cases)


@pytest.mark.slow
@pytest.mark.parametrize("door", (*FILES, *LOGS), ids=lambda door: door.name)
def test_a_thousand_mutations_of_files_are_read_or_refused(door: Door) -> None:
    needed(door)
    fuzz(door, SLOW)
