"""Two processes equal one, started by torchrun: the same draws bit for bit (test_train), the loss to 1e-6.

In the fast suite: test_sharded.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.records.record import Record
from tests.support.runs import TINY, losses, tiny, torchrun, trained


@pytest.mark.slow
@pytest.mark.parametrize("method", ["flow", "repa", "self_flow"])
def test_two_processes_equal_one(tmp_path: Path, method: str) -> None:
    spec = (f"method.name={method}", *(["method.encoder.name=random:tiny"] if method == "repa" else []))
    one = trained(tiny(*spec), tmp_path / "one")
    result = torchrun("digits", (*TINY, *spec), tmp_path / "two")
    assert result.returncode == 0, result.stderr
    two = Record(tmp_path / "two" / one.id)
    assert losses(two) == pytest.approx(losses(one), rel=1e-6)
    assert two.of("train")[-1]["flops"] == one.of("train")[-1]["flops"]
    assert two.environment[0]["devices"] == 2
