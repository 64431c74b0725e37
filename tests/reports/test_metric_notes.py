"""Caveats on the metric: favoured arms, failed evaluations and noise floors."""

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


def caveats(folder: Path) -> str:
    return "\n".join(caveats_of(read_race([folder])))


def test_caveats_omit_the_metric_when_the_record_does_not_describe_it(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    assert not any(
        word in caveats(tmp_path) for word in ("Noise floor", "computed", "the network that computes")
    )


def test_caveats_include_the_noise_floor(tmp_path: Path) -> None:
    write_run(tmp_path / "a", environment={"evaluation": {"floor": {METRIC: FLOOR}, "aligned": []}})
    assert (
        "Noise floor of fd:local, real against real: 0.5123 (500 training samples against 700 others); "
        "1.5 (100 held-out against 1200 training samples)."
    ) in caveats(tmp_path)


def test_caveats_name_arms_aligned_to_the_metrics_network(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", "repa", environment={"evaluation": {"floor": {}, "aligned": [METRIC]}})
    assert "repa aligned to the network that computes fd:local" in caveats(tmp_path)


def test_caveats_count_failed_evaluations(tmp_path: Path) -> None:
    record = write_run(tmp_path / "a")
    file = record.path / "events.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for event in [line for line in lines if line["kind"] == "eval"][:2]:
        event |= {"metrics": {}, "errors": {METRIC: "features are not finite"}}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "Could not be computed at 2 evaluations: fd:local (features are not finite)." in caveats(tmp_path)
