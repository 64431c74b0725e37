"""Data of strangers: mutated files are read or refused in one sentence."""

from __future__ import annotations

import pytest

from tests.fuzz.data_doors import DATA
from tests.fuzz.door import SLOW, Door, fuzz


@pytest.mark.parametrize("door", DATA, ids=lambda door: door.name)
def test_mutated_data_is_read_or_refused(door: Door) -> None:
    fuzz(door, door.cases)


@pytest.mark.slow
@pytest.mark.parametrize("door", DATA, ids=lambda door: door.name)
def test_a_thousand_mutations_of_data_are_read_or_refused(door: Door) -> None:
    fuzz(door, SLOW)
