"""What a report says of its metric: favour, failures, floor; and nothing where the record tells nothing."""

from __future__ import annotations

import json
from pathlib import Path

from reports.race.race import read_race
from reports.race.verdict import caveats_of
from tests.reports.synthetic import METRIC, write_run

FLOOR = {
    "train_halves": {"mean": 0.51234, "n": 500, "n_real": 700},
    "held_out": {"mean": 1.5, "n": 100, "n_real": 1200},
}


def said(folder: Path) -> str:
    return "\n".join(caveats_of(read_race([folder])))


def test_a_record_that_tells_nothing_gets_no_line(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    assert not any(
        word in said(tmp_path) for word in ("Noise floor", "computed", "the network that computes")
    )


def test_the_floor_stands_beside_the_metric(tmp_path: Path) -> None:
    write_run(tmp_path / "a", environment={"evaluation": {"floor": {METRIC: FLOOR}, "aligned": []}})
    assert (
        "Noise floor of fd:local, real against real: 0.5123 (500 training samples against the other 700); "
        "1.5 (100 held-out samples against the training split 1200)."
    ) in said(tmp_path)


def test_a_metric_that_an_arm_aligned_to_is_flagged(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", "repa", environment={"evaluation": {"floor": {}, "aligned": [METRIC]}})
    assert "repa aligned to the network that computes fd:local" in said(tmp_path)


def test_evaluations_that_failed_are_named(tmp_path: Path) -> None:
    record = write_run(tmp_path / "a")
    file = record.path / "events.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for event in [line for line in lines if line["kind"] == "eval"][:2]:
        event |= {"metrics": {}, "errors": {METRIC: "features are not finite"}}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "Could not be computed at 2 evaluations: fd:local (features are not finite)." in said(tmp_path)
