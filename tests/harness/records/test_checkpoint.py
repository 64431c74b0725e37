"""Checkpoint files: complete and verified, or rejected."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file

from harness.config.training_spec import TrainSpec
from harness.errors import UserError
from harness.records.checkpoint import DamagedCheckpoint, digest, load, save
from harness.records.checkpoint_files import checkpoints, path_of, precision_of, prune, step_of

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.ones((), dtype=torch.bfloat16),
    "none": torch.empty(0, 3),
}


def test_checkpoint_round_trips(tmp_path: Path) -> None:
    save(path_of(tmp_path, 7), TENSORS, {"step": "7"})
    found = load(path_of(tmp_path, 7))
    assert found.meta["step"] == "7"
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in TENSORS.items())


def test_digest_depends_on_names_types_shapes_and_bytes() -> None:
    a = TENSORS["a"]
    variants = [
        {"a": a},
        {"b": a},
        {"a": a.double()},
        {"a": a.reshape(3, 2)},
        {"a": a + 1},
        {"a": a.t().contiguous()},
    ]
    assert len({digest(v) for v in variants}) == len(variants)
    assert digest({"a": a.t()}) == digest({"a": a.t().contiguous()})


@pytest.mark.parametrize("where", [0, 3, 10, -30, -1])
def test_load_rejects_a_changed_byte(tmp_path: Path, where: int) -> None:
    path = path_of(tmp_path, 1)
    save(path, TENSORS, {})
    content = bytearray(path.read_bytes())
    content[where] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(
        UserError,
        match=r"step-00000001.safetensors is (damaged|not a readable checkpoint|a safetensors file)",
    ):
        load(path)


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_load_rejects_a_truncated_file_and_names_the_previous_checkpoint(tmp_path: Path, length: int) -> None:
    save(path_of(tmp_path, 1), TENSORS, {})
    save(path_of(tmp_path, 2), TENSORS, {})
    path = path_of(tmp_path, 2)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match="delete it to continue from step-00000001"):
        load(path)


def test_load_rejects_other_files(tmp_path: Path) -> None:
    path = path_of(tmp_path, 1)
    path.write_bytes(pickle.dumps(TENSORS))
    with pytest.raises(UserError, match="not a readable checkpoint"):
        load(path)
    torch.save(TENSORS, path)
    with pytest.raises(UserError, match="not a readable checkpoint"):
        load(path)
    save_file(TENSORS, path)
    with pytest.raises(UserError, match="no flowrace checkpoint"):
        load(path)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EMFILE, errno.ESTALE])
def test_intact_checkpoint_that_cannot_be_opened_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A damaged one is passed over, and renamed."""
    path = path_of(tmp_path, 1)
    save(path, TENSORS, {})

    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", refused)
        with pytest.raises(UserError, match=f"cannot read .*{os.strerror(number)}; correct this") as found:
            load(path)
    assert not isinstance(found.value, DamagedCheckpoint)
    assert torch.equal(load(path).tensors["a"], TENSORS["a"])


@pytest.mark.parametrize("place", ["folder", "missing"])
def test_path_without_a_file_is_not_called_damaged(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot read ") as found:
        load(tmp_path / place)
    assert not isinstance(found.value, DamagedCheckpoint)


def test_prune_keeps_the_newest_and_deletes_temporary_files(tmp_path: Path) -> None:
    for step in (1, 2, 10, 9):
        save(path_of(tmp_path, step), TENSORS, {})
    (tmp_path / ".step-00000011.safetensors.tmp").write_bytes(b"half")
    prune(tmp_path, TrainSpec(checkpoint_every=1, keep_checkpoints=2))
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "step-00000009.safetensors",
        "step-00000010.safetensors",
    ]
    assert checkpoints(tmp_path)[-1] == path_of(tmp_path, 10)


def test_equal_states_give_equal_bytes(tmp_path: Path) -> None:
    """Every hash map of safetensors has another order, so its own files differ."""
    tensors = {name: torch.arange(3.0) for name in "edcba"}
    meta = {"step": "1", "run": "r", "more": "m"}
    assert len({safetensors.torch.save(tensors, meta) for _ in range(20)}) > 1
    for number in range(20):
        save(tmp_path / str(number), tensors, meta)
    assert len({(tmp_path / str(number)).read_bytes() for number in range(20)}) == 1


@pytest.mark.parametrize(
    ("steps", "kept"),
    [((5, 10, 13), (5, 10, 13)), ((5, 10, 13, 14), (5, 10, 14)), ((5, 7, 10, 13, 15), (10, 15)),
     ((13,), (13,)), ((10, 15, 18, 22), (15, 22)), ((15, 20, 22), (20, 22))],
)  # fmt: skip
def test_prune_deletes_older_unscheduled_checkpoints_only(
    tmp_path: Path, steps: tuple[int, ...], kept: tuple[int, ...]
) -> None:
    """Scheduled are every 5th of 22 steps and the last one. Two of them are kept, and the newest checkpoint,
    from which the run resumes."""
    for step in steps:
        path_of(tmp_path, step).touch()
    prune(tmp_path, TrainSpec(steps=22, checkpoint_every=5, keep_checkpoints=2))
    assert [step_of(path) for path in checkpoints(tmp_path)] == list(kept)


@pytest.mark.parametrize("name", [".step-00000002.safetensors.tmp", ".tmpkojG9c"])
def test_prune_deletes_what_a_killed_write_left(tmp_path: Path, name: str) -> None:
    """Both our temporary file and the one of safetensors itself are deleted."""
    (tmp_path / name).write_bytes(b"half")
    save(path_of(tmp_path, 3), TENSORS, {})
    prune(tmp_path, TrainSpec())
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003.safetensors"]


def test_files_of_other_names_are_no_checkpoints(tmp_path: Path) -> None:
    for step in ("", "x", "1.safetensors", "²2"):
        (tmp_path / f"step-{step}.safetensors").touch()
    save(path_of(tmp_path, 7), TENSORS, {})
    assert checkpoints(tmp_path) == [path_of(tmp_path, 7)]


@pytest.mark.parametrize("header", ["[1]", '"text"', "3", "[" * 5000, "{"])
def test_header_that_is_no_table_is_rejected(tmp_path: Path, header: str) -> None:
    file = path_of(tmp_path, 1)
    save_file(TENSORS, file, metadata={"flowrace": header})
    with pytest.raises(UserError, match=r"is not a readable checkpoint"):
        load(file)
    with pytest.raises(UserError, match="is not a readable file of weights"):
        precision_of(file)
