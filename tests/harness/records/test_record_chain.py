"""The chain of a record: what was lost or altered is named, and what a run itself changes is not."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from harness.assembly.resolve import load_spec
from harness.errors import UserError
from harness.files import files
from harness.files.hash_chain import open_chain
from harness.records import checkpoint, record_chain
from harness.records.evaluations import add_evaluation
from harness.records.integrity import check_owner, misfits, named_misfits
from harness.records.record import Record
from harness.records.record_writer import RecordWriter
from tests.support.runs import tiny

SPEC = "seed = 0\n[train]\nsteps = 12\n"
NAME = "r"


def event(step: int, kind: str = "train") -> dict:
    loss = {"loss": 1 / step} if kind == "train" else {"metrics": {}, "protocol": "p"}
    return {"kind": kind, "step": step, "images": 8 * step, **loss, "seconds": {"student": 0.1 * step}}


def append(record: RecordWriter, steps: range) -> None:
    """Append a train event for each step, and a checkpoint event and a link at every fourth."""
    for step in steps:
        record.append(event(step))
        if step % 4 == 0:
            record.append({"kind": "checkpoint", "step": step, "images": 0, "file": "none"})
            record.seal()


def written(path: Path, *, steps: int = 12, after: int = 0, done: bool = True, spec: str = SPEC) -> Record:
    with RecordWriter(path) as record:
        record.write_spec(spec, replace=True)
        record.begin({"threads": 1}, after_step=after, keep=lambda one: one["step"] != 3)
        append(record, range(after + 1, steps + 1))
        if done:
            record.append(event(steps, "eval"))
            record.finish({})
    return Record(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("whole") / NAME).path


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / NAME))


def test_links_hash_the_first_bytes_of_the_events(whole: Path) -> None:
    content = (whole / "events.jsonl").read_bytes()
    links = [json.loads(line) for line in (whole / "chain.jsonl").read_text().splitlines()]
    sealed = [link for link in links if link["lines"]]
    assert [(link["step"], link["lines"]) for link in sealed] == [(4, 5), (8, 10), (12, 15), (12, 16)]
    for link in sealed:
        assert link["sha256"] == hashlib.sha256(content[: link["bytes"]]).hexdigest()
        assert link["spec"] == hashlib.sha256(SPEC.encode()).hexdigest()
    assert sealed[-1]["bytes"] == len(content) and sealed[-1]["end"]
    assert misfits(Record(whole)) == ()


def test_chain_is_the_only_file_that_is_added_and_events_have_no_field_of_it(whole: Path) -> None:
    assert not any("chain" in one or "sha256" in one for one in Record(whole).events)
    names = {"spec.toml", "environment.json", "events.jsonl", "chain.jsonl", "done", "lock"}
    assert {file.name for file in whole.iterdir()} == names | {"checkpoints", "samples"}


@pytest.mark.parametrize("number", range(16))
def test_each_lost_event_is_named_by_the_steps_around_it(run: Path, number: int) -> None:
    file = run / "events.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:number] + lines[number + 1 :]))
    lost = [
        "1 of 5 events up to step 4",
        "1 of 5 events between step 4 and step 8",
        "1 of 6 events between step 8 and step 12",
        "1 of 1 event at step 12",
    ][number // 5]
    assert misfits(Record(run)) == (f"its events.jsonl does not fit its chain: {lost} was lost",)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (b'"loss":0.2,', b'"loss":0.1,', "events between step 4 and step 8 were altered"),
        (b'"student":1.0', b'"student":0.9', "events between step 8 and step 12 were altered"),
        (b'{"kind":"eval"', b'{"kind":"x","step":12}\n{"kind":"eval"', "1 event at step 12 was added"),
    ],
    ids=["loss", "seconds", "added"],
)  # fmt: skip
def test_altered_and_added_events_are_named(run: Path, old: bytes, new: bytes, fault: str) -> None:
    content = (run / "events.jsonl").read_bytes()
    assert old in content
    (run / "events.jsonl").write_bytes(content.replace(old, new))
    assert misfits(Record(run)) == (f"its events.jsonl does not fit its chain: {fault}",)


def test_events_after_the_end_are_named(run: Path) -> None:
    with open(run / "events.jsonl", "a") as file:
        file.write(json.dumps(event(12)) + "\n")
    assert misfits(Record(run)) == (
        "its events.jsonl does not fit its chain: 1 event after the end of the run was added",
    )


def test_altered_spec_is_named_until_it_is_restored(run: Path) -> None:
    (run / "spec.toml").write_text(SPEC.replace("seed = 0", "seed = 1"))
    assert misfits(Record(run)) == ("its spec.toml was altered after the run wrote it",)
    with pytest.raises(UserError, match=r"spec\.toml was altered after the run wrote it; restore"):
        written(run, after=12)
    assert (run / "done").exists()
    (run / "spec.toml").write_text(SPEC)
    assert misfits(Record(run)) == ()


def test_command_on_a_run_with_an_altered_spec_is_refused(tmp_path: Path) -> None:
    spec = tiny()
    record = written(tmp_path / spec.id, spec=spec.to_toml())
    assert load_spec(str(record.path)) == spec
    (record.path / "spec.toml").write_text(
        spec.to_toml().replace("learning_rate = 0.001", "learning_rate = 0.1")
    )
    with pytest.raises(UserError, match=r"spec\.toml was altered after the run wrote it"):
        load_spec(str(record.path))


def test_altered_chain_is_named_and_a_removed_one_too(run: Path) -> None:
    file = run / "chain.jsonl"
    whole = file.read_text()
    file.write_text(whole.replace('"lines": 5', '"lines": 6'))
    (fault,) = misfits(Record(run))
    assert "chain.jsonl line" in fault and "was altered" in fault
    file.unlink()
    assert misfits(Record(run)) == (
        "its chain.jsonl is missing, so that nothing shows whether it is complete",
    )


def test_record_of_an_earlier_version_is_read_and_continued_without_a_word(run: Path) -> None:
    """Its starts do not mention a chain. From its next start on, it has one."""
    (run / "chain.jsonl").unlink()
    starts = [{"run": NAME, "threads": 1, "after_step": 0}]
    (run / "environment.json").write_text(json.dumps(starts))
    (run / "spec.toml").write_text(SPEC + "# edited by hand\n")
    assert misfits(Record(run)) == ()
    with RecordWriter(run) as record:
        record.write_spec(SPEC.replace("12", "16"), replace=True)
    assert not (run / "chain.jsonl").exists()
    longer = written(run, after=12, steps=16, spec=SPEC.replace("12", "16"))
    assert misfits(longer) == () and (run / "chain.jsonl").exists()
    (run / "spec.toml").write_text(SPEC)
    assert misfits(longer) == ("its spec.toml was altered after the run wrote it",)


@pytest.mark.parametrize("after", [0, 2, 4, 7, 8, 12])
def test_resumed_and_extended_runs_fit(run: Path, after: int) -> None:
    """Events of later steps are removed, and so is that of step 3, which a link covers."""
    (run / "done").unlink()
    longer = SPEC.replace("12", "20")
    record = written(run, after=after, steps=20, spec=longer)
    assert misfits(record) == ()
    assert 3 not in [one["step"] for one in record.events] or after < 3
    assert (run / "spec.toml").read_text() == longer


def test_run_that_is_being_written_fits_at_every_event(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / NAME) as record:
        record.write_spec(SPEC)
        record.begin({}, after_step=0)
        for step in range(1, 9):
            append(record, range(step, step + 1))
            assert misfits(Record(record.path)) == ()


def stop_at(patch: pytest.MonkeyPatch, stop: int) -> None:
    """Stop this process before its `stop`-th write of a file or of a link."""
    left = [stop]

    def counted(write):
        def stopping(*args, **kwargs):
            left[0] -= 1
            if left[0] == -1:
                raise KeyboardInterrupt
            return write(*args, **kwargs)

        return stopping

    patch.setattr("harness.records.record_writer.write_atomic", counted(files.write_atomic))
    patch.setattr(record_chain.Chain, "append", counted(record_chain.Chain.append))


@pytest.mark.parametrize("stop", range(12))
def test_run_that_stops_between_any_two_writes_fits_and_continues(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """An extension stops at its `stop`-th write of a file or of a link, before or after it."""
    longer = SPEC.replace("12", "16")
    with monkeypatch.context() as patch:
        stop_at(patch, stop)
        try:
            written(run, after=12, steps=16, spec=longer)
        except KeyboardInterrupt:
            assert misfits(Record(run)) == ()
    begun = Record(run).last_step
    assert misfits(written(run, after=min(begun, 12), steps=16, spec=longer)) == ()


class Disk:
    """The contents that a power cut spares at least: those of the last flush of each file, and of renames."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
        self.run, self.synced, self.links = run, {}, 0
        fsync, rename, append = os.fsync, os.replace, record_chain.Chain.append

        def flush(descriptor: int) -> None:
            fsync(descriptor)
            place = os.readlink(f"/proc/self/fd/{descriptor}")
            if os.path.isfile(place):
                self.synced[os.path.basename(place)] = Path(place).read_bytes()

        def replace(old: Path, new: Path) -> None:
            # Otherwise a spec or events may be there of which the chain does not know.
            assert self.is_synced(record_chain.CHAIN)
            rename(old, new)
            self.synced[new.name] = self.synced.pop(old.name)

        def link(chain: record_chain.Chain, row: dict) -> dict:
            # Otherwise the chain may cover events that were lost.
            assert len(self.synced.get("events.jsonl", b"")) >= row["bytes"]
            self.links += 1
            return append(chain, row)

        monkeypatch.setattr(os, "fsync", flush)
        monkeypatch.setattr(os, "replace", replace)
        monkeypatch.setattr(record_chain.Chain, "append", link)

    def is_synced(self, name: str) -> bool:
        file = self.run / name
        return not file.exists() or self.synced.get(name, b"") == file.read_bytes()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="this system does not name open files")
def test_links_are_on_the_disk_after_their_events_and_before_what_they_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a run continues after a power cut, whichever of its files has lost its last writes."""
    disk = Disk(monkeypatch, tmp_path / NAME)
    written(disk.run, steps=6, done=False)
    # The process was killed, and its last events are not on the disk.
    longer = SPEC.replace("12", "16")
    written(disk.run, after=5, steps=16, spec=longer)
    assert disk.is_synced(record_chain.CHAIN)
    assert disk.links == len(record_chain.read_links(disk.run)) > 9


@pytest.mark.parametrize("stop", range(5))
def test_record_of_an_earlier_version_that_stops_between_two_writes_fits_and_continues(
    run: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Its first start with a chain writes the chain before it mentions one."""
    (run / "chain.jsonl").unlink()
    (run / "environment.json").write_text(json.dumps([{"run": NAME, "threads": 1, "after_step": 0}]))
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        stop_at(patch, stop)
        written(run, after=12, done=False)
    assert misfits(Record(run)) == ()
    assert misfits(written(run, after=12)) == ()


def test_run_does_not_continue_on_a_record_that_lost_events(run: Path) -> None:
    file = run / "events.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:6] + lines[7:]))
    before = {one.name: one.read_bytes() for one in run.iterdir() if one.is_file() and one.name != "lock"}
    refusal = (
        r"events\.jsonl does not fit its chain: 1 of 5 events between step 4 and step 8 was lost; restore"
    )
    with pytest.raises(UserError, match=refusal):
        written(run, after=8)
    assert all((run / name).read_bytes() == content for name, content in before.items())
    # What is lost after the checkpoint is trained again.
    assert misfits(written(run, after=4)) == ()


def test_weights_of_another_run_are_named_and_refused(run: Path) -> None:
    (run / "ema").mkdir()
    own, foreign = (
        run / "checkpoints" / "step-00000008.safetensors",
        run / "ema" / "step-00000012.safetensors",
    )
    for file, owner in ((own, NAME), (foreign, "0123456789ab")):
        checkpoint.save(file, {"ema.x": torch.zeros(1)}, {"run": owner, "step": "8"})
    assert misfits(Record(run)) == ("its ema/step-00000012.safetensors belongs to run 0123456789ab",)
    check_owner(own)
    with pytest.raises(UserError, match="belongs to run 0123456789ab; restore its own weights"):
        check_owner(foreign)


@pytest.mark.parametrize("name", ["chain.jsonl", "events.jsonl"])
def test_record_that_cannot_be_read_is_named_and_stops_no_report(run: Path, whole: Path, name: str) -> None:
    (run / name).unlink()
    (run / name).mkdir()
    (fault,) = named_misfits([Record(run), Record(whole)])
    assert fault == f"run {NAME}: cannot read {run / name}: Is a directory"


def test_checkpoint_that_vanishes_meanwhile_is_no_fault(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = run / "checkpoints" / "step-00000008.safetensors"
    checkpoint.save(file, {"ema.x": torch.zeros(1)}, {"run": "0123456789ab", "step": "8"})

    def pruned(folder: Path) -> list[Path]:
        found = checkpoint.checkpoints(folder)
        file.unlink(missing_ok=True)
        return found

    assert misfits(Record(run)) != ()
    monkeypatch.setattr("harness.records.integrity.checkpoints", pruned)
    assert misfits(Record(run)) == ()


@pytest.mark.parametrize("name", ["lock", "chain.jsonl", "events.jsonl", "environment.json"])
def test_link_in_a_run_directory_is_never_written_through(run: Path, tmp_path: Path, name: str) -> None:
    """A directory from a stranger may hold a link to a file of the user."""
    victim = tmp_path / "victim"
    victim.write_bytes((run / name).read_bytes())
    before = victim.read_bytes()
    (run / name).unlink()
    (run / name).symlink_to(victim)
    # A file that is replaced takes the place of the link.
    refused = name in ("lock", "chain.jsonl")
    with pytest.raises(UserError, match="it is a link") if refused else contextlib.nullcontext():
        written(run, after=12)
    assert victim.read_bytes() == before


@pytest.mark.parametrize("name", ["register.jsonl", "evaluations.jsonl"])
def test_link_is_not_appended_to(tmp_path: Path, name: str) -> None:
    (tmp_path / "victim").write_bytes(b"")
    (tmp_path / name).symlink_to("victim")
    with pytest.raises(UserError, match=f"cannot write .*{name}: it is a link, which is not written; put"):
        if name == "evaluations.jsonl":
            add_evaluation(tmp_path, event(3, "eval"), {})
        else:
            with open_chain(tmp_path / name, bool, "a register") as chain:
                chain.append({"a": 1})
    assert (tmp_path / "victim").read_bytes() == b""
