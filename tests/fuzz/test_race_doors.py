"""Races, registers, golden files and prompts of strangers: read or refused in one sentence."""

from __future__ import annotations

import pytest

from tests.fuzz.door import SLOW, Door, fuzz
from tests.fuzz.race_doors import RACES


@pytest.mark.parametrize("door", RACES, ids=lambda door: door.name)
def test_mutated_race_is_read_or_refused(door: Door) -> None:
    fuzz(door, door.cases)


@pytest.mark.slow
@pytest.mark.parametrize("door", RACES, ids=lambda door: door.name)
def test_a_thousand_mutations_of_races_are_read_or_refused(door: Door) -> None:
    fuzz(door, SLOW)
