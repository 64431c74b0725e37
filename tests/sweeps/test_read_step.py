"""The step of a status, which reads as few lines as it can."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.records.record import EVENTS
from sweeps.plan.run_state import read_pace, read_step

TRAIN, LATER = {"kind": "train", "step": 8, "loss": 1.0}, {"kind": "eval", "step": 10, "metrics": {}}
OTHERS = ({"kind": "checkpoint", "step": 4}, {"kind": "eval", "step": 6, "metrics": {}})


@pytest.mark.parametrize(
    "events", [(), (TRAIN,), (*OTHERS, TRAIN), (TRAIN, LATER), OTHERS], ids=lambda events: str(len(events))
)
@pytest.mark.parametrize("end", ["", '{"kind":"train","step":9,"loss"', "no event\n"])
def test_step_is_that_of_the_pace(events: tuple[dict, ...], end: str, tmp_path: Path) -> None:
    (tmp_path / EVENTS).write_text("".join(json.dumps(event) + "\n" for event in events) + end)
    assert read_step(tmp_path) == read_pace(tmp_path).step
