"""Checkpoints written on a thread: the copied state, the order of events, and failures."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from harness.costs.meter import Meter
from harness.data.open import open_dataset, split
from harness.errors import UserError
from harness.records import checkpoint, checkpoint_files
from harness.records.record import Record
from harness.runtime.distributed import World
from harness.train.journal import Journal, StepResult
from harness.train.progress import Quiet
from harness.train.state import build_run, checkpoint_writer
from tests.support.runs import tiny, trained

pytestmark = pytest.mark.usefixtures("quick_networks")


def test_checkpoint_has_the_state_of_its_step(tmp_path: Path) -> None:
    """Later steps change weights in place, but the file has those of the requested step."""
    spec = tiny()
    dataset = open_dataset(spec.data)
    built = build_run(spec, dataset, split(dataset, 0.5), torch.device("cpu"))
    built.step = 3
    before = {name: tensor.clone() for name, tensor in built.model.state_dict().items()}
    write = checkpoint_writer(built, tmp_path)
    with torch.no_grad():
        for parameter in built.model.parameters():
            parameter.zero_()
    built.step = 4
    write()
    (file,) = checkpoint_files.checkpoints(tmp_path)
    saved = checkpoint.load(file)
    assert checkpoint_files.step_of(file) == int(saved.meta["step"]) == 3
    assert all(torch.equal(saved.part("model")[name], tensor) for name, tensor in before.items())


def test_events_after_a_checkpoint_wait_until_its_file_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the file of step 4 is being written, the record ends with step 4, and training continues."""
    spec, save_file = tiny("train.steps=7", "train.checkpoint_every=4"), checkpoint.save_file
    sixth_step, during = threading.Event(), {}

    def slow(tensors, path, metadata) -> None:
        if "00000004" in path.name:
            assert sixth_step.wait(60), "training waited for the checkpoint"
            during["record"] = [(e["kind"], e["step"]) for e in Record(tmp_path / spec.id).events]
        save_file(tensors, path, metadata=metadata)

    step = torch.optim.AdamW.step
    taken = []

    def counting(*args, **kwargs):
        taken.append(1)
        if len(taken) == 6:
            sixth_step.set()
        return step(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "save_file", slow)
    monkeypatch.setattr(torch.optim.AdamW, "step", counting)
    record = trained(spec, tmp_path)
    assert during["record"] == [("train", 1), ("train", 2), ("train", 3), ("train", 4)]
    kinds = [(event["kind"], event["step"]) for event in record.events]
    assert kinds.index(("checkpoint", 4)) == kinds.index(("train", 5)) - 1
    assert [s for k, s in kinds if k == "train"] == [1, 2, 3, 4, 5, 6, 7]


def test_run_stops_when_a_checkpoint_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record ends with the last complete checkpoint, from which the same command resumes."""
    spec, save_file = tiny(), checkpoint.save_file

    def full(tensors, path, metadata) -> None:
        if "00000008" in path.name:
            raise OSError(28, "No space left on device")
        save_file(tensors, path, metadata=metadata)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(UserError, match=r"cannot write the checkpoint.*No space left on device"):
            trained(spec, tmp_path)
    record = Record(tmp_path / spec.id)
    assert record.status == "stopped"
    assert [event["step"] for event in record.of("checkpoint")] == [4]
    assert trained(spec, tmp_path).of("checkpoint")[-1]["step"] == 12


def test_memory_peaks_are_booked_to_the_innermost_phase() -> None:
    """A list of peaks replaces the allocator. The peak of a nested phase is not that of its parent."""
    peaks = iter([5, 90, 7, 30])
    meter = Meter(lambda: 0, lambda start, end: 0.0, lambda: next(peaks))
    with meter.phase("student"), meter.phase("teacher"):
        pass
    with meter.phase("optimizer"):
        pass
    assert meter.peaks == {"student": 7, "teacher": 90, "optimizer": 30}


def test_clock_is_settled_on_ranks_without_a_record(tmp_path: Path) -> None:
    """Otherwise the timed spans would accumulate with every step."""
    added = []
    meter = Meter(lambda: 0, lambda start, end: float(added.append(1) or 1))
    step = SimpleNamespace(spec=tiny("train.log_every=2"), meter=meter)
    journal = Journal(step, World(1, 1, torch.device("cpu")), None, Quiet())
    for number in range(1, 5):
        with meter.phase("student"):
            pass
        journal.add(StepResult(number, {"loss": torch.ones(())}, torch.ones(()), 1e-3), write=False)
        assert len(added) == number // 2 * 2
