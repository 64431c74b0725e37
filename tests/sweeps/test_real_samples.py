"""Real samples of a study: measured once by a helper process, before the workers start."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from harness.cli.data import data as data_command
from harness.data.open import open_dataset, split
from harness.evaluation import real_side
from harness.evaluation.evaluator import Evaluator
from harness.files.cache import cache_dir
from harness.records.record_writer import RecordWriter
from sweeps.cli.display import PlainDisplay
from sweeps.launch import real_samples
from sweeps.launch.local import LocalLauncher
from sweeps.launch.real_samples import prepare_real_samples
from sweeps.plan.plan import PlannedRun, make_plan
from sweeps.plan.study import Study
from tests.harness.data.pictures import parquet_of, pixels
from tests.support.quick import keep_local_network


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[PlannedRun]:
    """Two runs on the same 60 images, with a cache that has the network of their metric, trained quickly."""
    file = parquet_of(tmp_path / "a.parquet", pixels(60), np.arange(60) % 3)
    fields = {"data.name": "parquet", "data.root": str(file), "eval.samples": 10, "runtime.threads": 1}
    study = Study(name="s", base="digits", axes={"seed": (0, 1)}, set={**fields, "backbone.size": "pico"})
    runs = make_plan(study).runs
    monkeypatch.setenv("FLOWRACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("metrics.extractors.local.STEPS", 4)
    keep_local_network(runs[0].spec)
    return runs


def passes(run: PlannedRun, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the number of passes over real samples at the start of a run."""
    found: list[Any] = []
    measure = real_side.real_features
    with monkeypatch.context() as patch:
        patch.setattr(real_side, "real_features", lambda *given: (found.append(given), measure(*given))[1])
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        dataset = open_dataset(run.spec.data)
        sides = split(dataset, run.spec.data.held_out)
        Evaluator(run.spec.eval, dataset, sides.train, torch.device("cpu"), sides.held_out)
        torch.set_num_threads(threads)
    return len(found)


@pytest.mark.slow
def test_helper_measures_what_the_workers_would(
    planned: list[PlannedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    with LocalLauncher(1) as launcher:
        prepare_real_samples(planned, tmp_path / "study", launcher, notes.append)
        assert notes[0] == "measuring the real samples before the runs start"
        assert passes(planned[0], monkeypatch) == 0
        again: list[str] = []
        prepare_real_samples(planned, tmp_path / "study", launcher, again.append)
    assert again == []


def test_study_with_one_unfinished_run_or_small_generated_data_needs_no_helper(
    planned: list[PlannedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real_samples, "_run", lambda *_: pytest.fail("started"))
    digits = make_plan(Study(name="s", base="digits", axes={"seed": (0, 1)}, set={})).runs
    with RecordWriter(tmp_path / planned[0].id) as record:
        record.write_spec(planned[0].spec.to_toml())
        record.begin({}, after_step=0)
        record.finish({})
    with LocalLauncher(1) as launcher:
        prepare_real_samples([*digits, *planned], tmp_path, launcher, pytest.fail)


def test_helper_ends_with_the_launcher(
    planned: list[PlannedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A helper that would take forever ends at once, and nothing is marked as measured."""
    monkeypatch.setattr(real_samples, "prepare_command", lambda _: ("sleep", "1000"))
    wait = real_samples.subprocess.Popen.wait

    with LocalLauncher(1) as launcher:

        def stopped(process: Any, *given: Any) -> int:
            launcher.stopped_by = signal.SIGINT
            return wait(process, *given)

        monkeypatch.setattr(real_samples.subprocess.Popen, "wait", stopped)
        prepare_real_samples(planned, tmp_path, launcher, lambda _: None)
        monkeypatch.undo()
    assert not list(cache_dir("features").glob("prepared-*"))


def test_failed_helper_leaves_the_reason_to_the_runs(
    planned: list[PlannedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    monkeypatch.setattr(real_samples, "prepare_command", lambda _: ("sh", "-c", "echo broken; exit 2"))
    with LocalLauncher(1) as launcher:
        prepare_real_samples(planned, tmp_path, launcher, notes.append)
    assert notes[-1] == "broken" and not list(cache_dir("features").glob("prepared-*"))


def test_prepare_command_fills_the_cache(
    planned: list[PlannedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "spec.toml"
    file.write_text(planned[0].spec.to_toml())
    threads = torch.get_num_threads()
    result = CliRunner().invoke(data_command, ["prepare", str(file)], catch_exceptions=False)
    torch.set_num_threads(threads)
    assert result.exit_code == 0 and passes(planned[1], monkeypatch) == 0


def test_display_shows_what_a_run_is_loading_until_its_first_step(
    planned: list[PlannedRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, time = planned[0], [0.0]
    log = tmp_path / "logs" / f"{run.id}.log"
    log.parent.mkdir()
    log.write_text("run starts\nreading 54 real samples for fd:local: 40\nreading 54 rea")
    with PlainDisplay(planned, tmp_path, now=lambda: time[0]) as lines:
        lines.started(run)
        time[0] += 30
        lines.tick()
        assert "seed 0: reading 54 real samples for fd:local: 40; 0 of 2" in capsys.readouterr().err
        with RecordWriter(tmp_path / run.id) as record:
            record.write_spec(run.spec.to_toml())
            record.begin({}, after_step=0)
            event = {"kind": "train", "step": 1, "images": 8, "loss": 0.5, "seconds": {"student": 1.0}}
            record.append(event)
        time[0] += 30
        lines.tick()
        assert "seed 0: step 1 of" in capsys.readouterr().err
