"""Containers, latents of other code and captions of strangers: read or refused in one sentence."""

from __future__ import annotations

import pytest

from tests.fuzz.container_doors import CAPTIONS, CONTAINERS, LATENTS
from tests.fuzz.door import SLOW, Door, fuzz

DOORS = (*CONTAINERS, *CAPTIONS, *LATENTS)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.name)
def test_mutated_container_is_read_or_refused(door: Door) -> None:
    fuzz(door, door.cases)


@pytest.mark.slow
@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.name)
def test_a_thousand_mutations_of_containers_are_read_or_refused(door: Door) -> None:
    fuzz(door, SLOW)
