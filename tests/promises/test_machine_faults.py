"""Faults of the machine: one sentence, nothing lost, and the same command continues to the same bits."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.files import hash_chain
from harness.records import record_writer as records
from harness.records.checkpoint_files import checkpoints
from harness.records.integrity import misfits
from harness.records.record import Record
from harness.runtime import environment
from harness.train.loop import train
from harness.train.progress import Quiet
from tests.support.forked import command_in_child, exit_code, has_ended
from tests.support.machine_faults import FAULTS, Break, in_file, in_line
from tests.support.runs import TINY, everything, tiny, trained
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("quick_networks")

SPEC = (
    "train.steps=8", "train.checkpoint_every=4", "eval.every=4", "eval.samples=8", "eval.sampler_steps=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> str:
    return everything(trained(tiny(*SPEC), tmp_path_factory.mktemp("unbroken")))


PLACES: dict[str, Break] = {
    "checkpoint": in_file("checkpoints/step-00000008.safetensors"),
    "event": in_line(records, 5),
    "link": in_line(hash_chain, 4),
    "start": in_file("environment.json"),
    "spec": in_file("spec.toml"),
    "events": in_file("events.jsonl"),
    "clock": in_file("clock.json", calls=1),
    "picture": in_file("step-00000004.png"),
    "weights": in_file("ema/step-00000008.safetensors"),
    "end": in_file("done"),
}
FAST = {"checkpoint": errno.EIO, "event": errno.ENOSPC, "link": errno.EDQUOT, "start": errno.EROFS}


@pytest.mark.parametrize(
    ("place", "number"),
    [
        pytest.param(place, number, marks=[] if FAST.get(place) == number else pytest.mark.slow)
        for place in PLACES
        for number in FAULTS
    ],
    ids=lambda value: errno.errorcode.get(value, value),
)
def test_run_that_cannot_write_says_so_and_continues_to_the_same_bits(
    tmp_path: Path, unbroken: str, place: str, number: int
) -> None:
    spec, reason = tiny(*SPEC), os.strerror(number)
    with pytest.MonkeyPatch.context() as patch:
        PLACES[place](patch, OSError(number, reason))
        with pytest.raises(UserError, match=rf"^cannot write .*{reason}; .*the same command") as stopped:
            trained(spec, tmp_path)
    assert "\n" not in str(stopped.value)
    record = Record(tmp_path / spec.id)
    assert record.status in ("stopped", "missing") and misfits(record) == ()
    assert record.events == [] or record.last_step >= 4
    assert not list(record.path.rglob("*.tmp"))
    assert everything(trained(spec, tmp_path)) == unbroken


def test_run_whose_cache_cannot_be_written_says_so_and_continues(
    tmp_path: Path, unbroken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first file of an empty cache is the network of the metric."""
    monkeypatch.setenv("FLOWRACE_CACHE", str(tmp_path / "cache"))
    reason = os.strerror(errno.EDQUOT)
    with pytest.MonkeyPatch.context() as patch:
        in_file(".safetensors")(patch, OSError(errno.EDQUOT, reason))
        with pytest.raises(UserError, match=rf"cannot write the cache file \S*cache\S*: {reason}"):
            trained(tiny(*SPEC), tmp_path / "runs")
    assert not [file for file in (tmp_path / "cache").rglob("*") if "tmp" in file.name]
    assert everything(trained(tiny(*SPEC), tmp_path / "runs")) == unbroken


class Notes(Quiet):
    """Keeps the notes of a run."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def stopped(tmp_path: Path) -> Record:
    """Return a run of which the last checkpoint was written and the end was not."""
    spec = tiny(*SPEC)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError):
        in_file("done")(patch, OSError(errno.EIO, "x"))
        trained(spec, tmp_path)
    return Record(tmp_path / spec.id)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [flip, lambda file: os.truncate(file, 1000)], ids=["bit", "cut"])
def test_damaged_newest_checkpoint_falls_back_to_the_one_before(
    stopped: Record, unbroken: str, damage: Callable[[Path], None]
) -> None:
    newest, progress = checkpoints(stopped.path / "checkpoints")[-1], Notes()
    damage(newest)
    kept = newest.read_bytes()
    train(tiny(*SPEC), stopped.path.parent, progress)
    (said,) = [note for note in progress.notes if "damaged" in note]
    aside = newest.with_name(f"{newest.name}.damaged")
    continues = "the run continues from the one before it"
    assert said == f"{newest} is damaged and was renamed to {aside.name}; {continues}"
    assert aside.read_bytes() == kept
    aside.unlink()
    assert everything(Record(stopped.path)) == unbroken


def test_deleted_newest_checkpoint_falls_back_to_the_one_before(stopped: Record, unbroken: str) -> None:
    progress = Notes()
    checkpoints(stopped.path / "checkpoints")[-1].unlink()
    train(tiny(*SPEC), stopped.path.parent, progress)
    assert "the checkpoint of step 8 is missing; the run continues from step 4" in progress.notes
    assert everything(Record(stopped.path)) == unbroken


def test_extension_without_its_newest_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, unbroken: str
) -> None:
    short, progress = trained(tiny(*SPEC, "train.steps=6"), tmp_path), Notes()
    checkpoints(short.path / "checkpoints")[-1].unlink()
    train(tiny(*SPEC), tmp_path, progress)
    assert "the checkpoint of step 6 is missing; the run continues from step 4" in progress.notes
    for name in ("samples/step-00000006.png", "ema/step-00000006.safetensors"):
        (short.path / name).unlink()
    assert everything(Record(short.path)) == unbroken


def test_run_whose_checkpoints_are_all_damaged_is_refused_and_changes_nothing(stopped: Record) -> None:
    files = checkpoints(stopped.path / "checkpoints")
    for file in files:
        flip(file)
    before = (stopped.path / "events.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"step-00000008\.safetensors is damaged: .* delete it to continue"):
        trained(tiny(*SPEC), stopped.path.parent)
    assert checkpoints(stopped.path / "checkpoints") == files
    assert (stopped.path / "events.jsonl").read_bytes() == before


def test_clock_that_goes_back_changes_no_bits_and_no_order(
    tmp_path: Path, unbroken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at the wall clock is a day before the last; the run is stopped and continued meanwhile."""
    days = iter(range(20_000, 0, -1))
    monkeypatch.setattr(environment, "time", type("Clock", (), {"time": lambda: 86_400.0 * next(days)}))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError):
        PLACES["event"](patch, OSError(errno.EIO, "x"))
        trained(tiny(*SPEC), tmp_path)
    record = trained(tiny(*SPEC), tmp_path)
    starts = [start["started"] for start in record.environment]
    assert len(starts) == 2 and starts[1] < starts[0]
    assert everything(record) == unbroken
    seconds = [event["seconds"] for event in record.events if "seconds" in event]
    totals = [sum(one.values()) for one in seconds]
    assert totals == sorted(totals) and all(value >= 0 for one in seconds for value in one.values())


def test_run_that_is_stopped_for_a_while_is_running_and_ends_with_the_same_bits(
    tmp_path: Path, unbroken: str
) -> None:
    """After SIGSTOP its folder is in use, and after SIGCONT it continues."""
    words = [word for override in (*TINY, *SPEC) for word in ("--set", override)]
    command = ["run", "digits", *words, "--out", str(tmp_path / "runs"), "--no-track"]
    child = command_in_child(command, tmp_path / "output")
    record = Record(tmp_path / "runs" / tiny(*SPEC).id)
    wait_until(lambda: record.status == "running" or has_ended(child))
    os.killpg(child, signal.SIGSTOP)
    wait_until(lambda: os.waitid(os.P_PID, child, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None)
    try:
        assert record.status == "running"
        with pytest.raises(UserError, match=rf"is in use by process {child} on .*; wait for it or stop it"):
            trained(tiny(*SPEC), tmp_path / "runs")
    finally:
        os.killpg(child, signal.SIGCONT)
    assert exit_code(child) == 0
    assert everything(Record(record.path)) == unbroken
