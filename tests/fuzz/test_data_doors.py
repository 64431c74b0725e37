"""Data of strangers: mutated files are read or refused in one sentence."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.doors import DATA, Door, seeds_of
from tests.fuzz.guards import run_case
from tests.fuzz.mutations import edits, mutated

SLOW = 1000
"""Cases of each door in the slow suite."""


def fuzz(door: Door, cases: int, *, seeded: bool) -> None:
    """Read mutated files of a door; the valid ones are accepted."""
    files = seeds_of(door)
    assert run_case(files, door.read)

    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=seeded,
        suppress_health_check=list(HealthCheck),
    )
    @given(changes=edits(door.text))
    def survives(changes: list) -> None:
        run_case(mutated(files, changes), door.read)

    survives()


@pytest.mark.parametrize("door", DATA, ids=lambda door: door.name)
def test_mutated_data_is_read_or_refused(door: Door) -> None:
    fuzz(door, door.cases, seeded=True)


@pytest.mark.slow
@pytest.mark.parametrize("door", DATA, ids=lambda door: door.name)
def test_a_thousand_mutations_of_data_are_read_or_refused(door: Door) -> None:
    fuzz(door, SLOW, seeded=True)
