"""The progress display of a sweep, from the ends of growing records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.files.files import TAIL_BYTES
from harness.records.record import Record
from harness.records.record_writer import RecordWriter
from sweeps.cli.display import LiveDisplay, PlainDisplay
from sweeps.cli.tables import describe_plan
from sweeps.plan.plan import PlannedRun, make_plan
from sweeps.plan.run_state import Pace, read_pace
from sweeps.plan.study import Study

RUNS = make_plan(Study(name="s", base="digits", axes={"seed": (0, 1, 2)}, set={"train.steps": 100})).runs


def train(step: int, seconds: float, loss: float = 0.25) -> dict[str, Any]:
    return {
        "kind": "train", "step": step, "images": step, "loss": loss,
        "seconds": {"student": seconds / 2, "eval": seconds / 2},
    }  # fmt: skip


def grow(directory: Path, planned: PlannedRun, *events: dict[str, Any], done: bool = False) -> None:
    with RecordWriter(directory / planned.id) as record:
        record.write_spec(planned.spec.to_toml())
        record.begin({}, after_step=Record(record.path).last_step)
        record.append(*events)
        if done:
            record.finish({})


def test_pace_is_measured_over_the_last_events(tmp_path: Path) -> None:
    grow(
        tmp_path,
        RUNS[0],
        train(10, 5.0),
        train(20, 7.0, loss=0.5),
        {"kind": "eval", "step": 20, "metrics": {}},
    )
    assert read_pace(tmp_path / RUNS[0].id) == Pace(20, 0.5, 5.0)


def test_remaining_time_uses_the_speed_of_finished_training(tmp_path: Path) -> None:
    """40 training seconds (half of the total) make 80 of 100 steps; one run of three is at step 90."""
    study = Study(name="s", base="digits", axes={"seed": (0, 1, 2)}, set={"train.steps": 100})
    assert describe_plan(study, RUNS, tmp_path)["training_seconds_left"] is None
    grow(tmp_path, RUNS[0], train(10, 20.0), train(90, 100.0))
    described = describe_plan(study, RUNS, tmp_path)
    assert described["training_seconds_left"] == pytest.approx(40 / 0.8 * (0.1 + 2), rel=1e-6)


def test_pace_reads_only_the_end_of_a_long_record(tmp_path: Path) -> None:
    slow = [train(step, 100.0 * step) for step in range(1, 1001)]
    fast = [train(1000 + step, 100_000.0 + step) for step in range(1, 1001)]
    grow(tmp_path, RUNS[0], *slow, *fast)
    assert (tmp_path / RUNS[0].id / "events.jsonl").stat().st_size > 8 * TAIL_BYTES
    assert read_pace(tmp_path / RUNS[0].id) == Pace(2000, 0.25, 1.0)


def test_pace_ignores_an_incomplete_line(tmp_path: Path) -> None:
    grow(tmp_path, RUNS[0], train(10, 5.0))
    with open(tmp_path / RUNS[0].id / "events.jsonl", "a") as file:
        file.write(json.dumps(train(20, 6.0))[:-1])
    assert read_pace(tmp_path / RUNS[0].id) == Pace(10, 0.25, None)


@pytest.mark.parametrize("content", [None, b"", b"\xff\n[1]\n{}\n"])
def test_pace_is_at_step_0_without_events(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "events.jsonl").write_bytes(content)
    assert read_pace(tmp_path) == Pace(0, None, None)


def test_plain_display_prints_starts_ends_and_a_line_each_half_minute(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    time = [1000.0]
    one, two, three = RUNS
    grow(tmp_path, one, train(100, 9.0), done=True)
    # Stopped half way, so that 150 steps remain.
    grow(tmp_path, two, train(50, 25.0))
    with PlainDisplay(RUNS, tmp_path, now=lambda: time[0]) as lines:
        lines.started(two)
        time[0] += 29
        lines.tick()
        assert capsys.readouterr().err == f"run 2 of 3 started: flow seed 1 ({two.id})\n"
        grow(tmp_path, two, train(75, 37.5))
        time[0] += 1
        lines.tick()
        lines.tick()
        # 25 of 150 steps took 30 s, so 125 more take 150 s.
        words = "flow seed 1: step 75 of 100, loss 0.2500, 2.0 steps/s, 0:12 left"
        assert capsys.readouterr().err == f"{words}; 1 of 3 runs done, 2:30 left\n"
        lines.finished(two, None)
        lines.started(three)
        lines.finished(three, "out of paper")
        shown = capsys.readouterr().err.splitlines()
    assert shown[0] == "flow seed 1: done" and shown[1].startswith("run 3 of 3 started: flow seed 2")
    assert shown[2] == "flow seed 2: FAILED: out of paper"
    assert lines.summary([]) == "2 of 3 runs done, 1 failed, 0:00 left"


def test_live_display_draws_a_line_per_run_and_a_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(force_terminal=True, width=120, record=True, legacy_windows=False)
    monkeypatch.setattr("harness.files.progress.Console", lambda stderr: console)
    time = [0.0]
    with LiveDisplay(RUNS, tmp_path, now=lambda: time[0]) as bars:
        for planned in RUNS[:2]:
            bars.started(planned)
            grow(tmp_path, planned, train(10, 5.0), train(20, 10.0))
        time[0] = 10.0
        bars.tick()
        bars.note("[red]as it is[/red]")
    text = console.export_text()
    for planned in RUNS[:2]:
        (line,) = {line for line in text.splitlines() if line.startswith(planned.label) and "step" in line}
        assert line.endswith("step 20 of 100  loss 0.2500  2.0 steps/s  0:40 left")
    # 40 of 300 steps took 10 s.
    assert "0 of 3 runs done, 1:05 left" in text
    assert "[red]as it is[/red]" in text
