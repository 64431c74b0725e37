"""Memorisation: its definition, and copies that the Frechet distance does not detect."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metrics import memorisation
from tests.support.features import normal, quick, seeds


@quick
@given(seeds, st.integers(1, 4), st.integers(2, 20), st.integers(2, 20))
def test_memorisation_equals_its_definition(seed: int, d: int, n: int, m: int) -> None:
    train, fake = normal(seed, n, d), normal(seed + 1, m, d)
    gap = lambda p, q: np.sqrt(((p - q) ** 2).sum())  # noqa: E731
    copies = []
    for sample in fake:
        nearest = min(range(n), key=lambda i: gap(sample, train[i]))
        own = min(gap(train[nearest], train[j]) for j in range(n) if j != nearest)
        copies.append(gap(sample, train[nearest]) <= own)
    assert float(memorisation(train, fake)) == pytest.approx(np.mean(copies), abs=1e-12)


def test_memorisation_detects_copies_of_training_samples() -> None:
    train, held_out = normal(1, 400, 8), normal(2, 300, 8)
    fresh_share = memorisation(train, held_out)
    assert memorisation(train, train[:100]).mean == 1
    assert memorisation(train, np.vstack([train[:150], held_out[:150]])).low > fresh_share.high
    assert memorisation(train, held_out + 50).mean == 0
    assert memorisation(np.vstack([train, train]), train[:50]).mean == 1
