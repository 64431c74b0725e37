"""Mistakes of users: one clear sentence, exit code 2, no traceback, nothing overwritten."""

from __future__ import annotations

import contextlib
import gzip
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from harness.cli import main as cli
from harness.errors import UserError
from harness.records.checkpoint_files import checkpoints
from harness.records.record import Record
from sweeps.plan.study_folder import study_lock
from tests.support.runs import TINY, tiny, trained

pytestmark = pytest.mark.usefixtures("quick_networks")


def flowrace(capsys: pytest.CaptureFixture, *words: str) -> tuple[int, str]:
    """Run the command in this process; return its exit code and standard error."""
    before = sys.argv
    sys.argv = ["flowrace", *map(str, words)]
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = before
    return code, capsys.readouterr().err


def refused(capsys: pytest.CaptureFixture, *words: object, says: str) -> None:
    """Check that the command fails with exit code 2 and one sentence that matches `says`."""
    code, message = flowrace(capsys, *words)
    assert code == 2, message
    assert "Traceback" not in message
    assert len(message.strip().splitlines()) == 1 or message.startswith("Usage:"), message
    assert re.search(says, message), message


def run(out: Path, *overrides: str) -> list[object]:
    words = [word for override in (*TINY, *overrides) for word in ("--set", override)]
    return ["run", "digits", *words, "--out", out, "--no-track", "--quiet"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "digitz"], r"unknown preset 'digitz'.*Did you mean 'digits'"),
        (["run", "absent.toml"], r"cannot read absent.toml: No such file"),
        (
            ["run", "digits", "--set", "data.resolution=32"],
            r"data set 'digits' has no such field; leave it out",
        ),
        (["run", "tones", "--set", "data.root=x"], r"data.root = x: .*'tones' .*\(it reads data.frames\)"),
        (
            ["run", "tones", "--set", "data.flip=true"],
            r"data.flip = true mirrors pictures, but 'tones' is audio",
        ),
        (["run", "bounce", "--set", "data.flip=true"], r"mirrors pictures, but 'bounce' is joint"),
        (
            ["run", "digits", "--set", "train.stepz=3"],
            r"unknown key 'train.stepz'.*Did you mean 'train.steps'",
        ),
        (["run", "digits", "--set", "trian.steps=3"], r"Did you mean 'train.steps'"),
        (["run", "digits", "--set", "steps=60"], r"unknown key 'steps'.*Did you mean 'train.steps'"),
        (
            ["run", "digits", "--set", "batch_size=8"],
            r"Did you mean 'train.batch_size' or 'eval.batch_size'\? See: flowrace spec",
        ),
        (["sweep", "digits", "--set", "steps=60"], r"unknown key 'steps'.*Did you mean 'train.steps'"),
        (["tune", "tune-digits", "--set", "steps=60"], r"unknown key 'steps'.*Did you mean 'train.steps'"),
        (
            ["run", "digits", "--set", "method.name=repa", "--set", "layer=4"],
            r"Did you mean 'text.layer' or 'method.layer'",
        ),
        (["run", "digits", "--set", "method.name=rep"], r"unknown method 'rep'.*Did you mean 'repa'"),
        (["run", "digits", "--set", "train.steps=many"], r"train.steps = \"many\""),
        (["run", "digits", "--set", "train.batch_size=0"], r"train.batch_size = 0"),
        (["run", "digits", "--set", "steps"], r"expected a.b=value"),
        (["run", "digits", "--set", "backbone.size=huge"], r"unknown backbone.size 'huge'"),
        (["list", "method"], r"unknown kind 'method'.*Did you mean 'methods'"),
        (["explain", "rep"], r"unknown method 'rep'.*Did you mean 'repa'"),
        (["probe", "nowhere"], r"no such run directory: nowhere"),
        (["verify", "absent.safetensors"], r"cannot read absent.safetensors"),
        (["eval", "absent"], r"no such run directory: absent"),
        (["sample", "absent"], r"no such run directory: absent"),
        (["report", "absent"], r"absent"),
        (["sweep", "digitz"], r"digitz.*Did you mean 'digits'"),
        (["frobnicate"], r"No such command"),
        (["run"], r"Missing argument"),
    ],
)
def test_invalid_command_line_is_rejected(
    capsys, tmp_path: Path, monkeypatch, words: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(capsys, *words, says=says)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["method.name=self_flow", "method.teacher_layer=9"],
            r"teacher_layer = 9: backbone pico has layers 1 to 4",
        ),
        (['eval.metrics=["kid:local"]'], r"'kid:local' draws subsets of 1000"),
        (['eval.metrics=["fd:locale"]'], r"fd:locale"),
        (["backbone.patch=3"], r"patch = 3x3 does not divide the image size 8x8"),
        (["runtime.device=cuda:9"], r"runtime.device = 'cuda:9' cannot be used"),
        (["runtime.device=gpu"], r"runtime.device = 'gpu' cannot be used"),
        (["train.accumulate=3"], r"cannot be divided into 3 equal parts"),
        (
            ["method.name=repa", "method.encoder.name=locale:small"],
            r"unknown encoder 'locale'.*Did you mean 'local'",
        ),
        (["method.name=repa", "method.encoder.name=local:smal"], r"smal"),
        (["method.name=repa", "method.encoder.name=timm:vit_tiny_patch16_224"], r"vit_tiny_patch16_224"),
        (["data.name=folder", "data.root=nowhere"], r"nowhere"),
        (["data.name=parquet"], r"data.root"),
        (["data.fingerprint=0123456789abcdef"], r"fingerprint"),
    ],
)
def test_invalid_spec_is_rejected_before_training(
    capsys, tmp_path: Path, overrides: list[str], says: str
) -> None:
    refused(capsys, *run(tmp_path, *overrides), says=says)
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.rglob("done"))


def images(folder: Path) -> Path:
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(np.full((8, 8), 40 * number, np.uint8)).save(folder / label / f"{number}.png")
    return folder


def test_run_rejects_broken_data_by_file_name(capsys, tmp_path: Path) -> None:
    folder = images(tmp_path / "images")
    broken = folder / "b" / "1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    refused(capsys, *run(tmp_path / "r", "data.name=folder", f"data.root={folder}"), says=r"b/1\.png")

    (tmp_path / "empty").mkdir()
    refused(
        capsys, *run(tmp_path / "r", "data.name=folder", f"data.root={tmp_path / 'empty'}"), says=r"empty"
    )

    np.savez(tmp_path / "object.npz", images=np.array([{}], dtype=object), labels=np.zeros(1, int))
    refused(
        capsys,
        *run(tmp_path / "r", "data.name=npz", f"data.root={tmp_path / 'object.npz'}"),
        says=r"object\.npz",
    )
    np.savez(tmp_path / "float.npz", images=np.zeros((4, 8, 8)), labels=np.zeros(4, int))
    refused(
        capsys, *run(tmp_path / "r", "data.name=npz", f"data.root={tmp_path / 'float.npz'}"), says=r"float"
    )
    np.savez(tmp_path / "label.npz", images=np.zeros((4, 8, 8), np.uint8), labels=np.array([0, 1, -2, 1]))
    refused(capsys, *run(tmp_path / "r", "data.name=npz", f"data.root={tmp_path / 'label.npz'}"), says=r"-2")

    idx = tmp_path / "idx"
    idx.mkdir()
    (idx / "train-images-idx3-ubyte").write_bytes(
        bytes([0, 0, 8, 3, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0, 0, 8]) + b"\0" * 100
    )
    with gzip.open(idx / "train-labels-idx1-ubyte.gz", "wb") as file:
        file.write(bytes([0, 0, 8, 1, 0, 0, 0, 9]) + b"\0" * 9)
    refused(
        capsys, *run(tmp_path / "r", "data.name=idx", f"data.root={idx}"), says=r"train-images-idx3-ubyte"
    )

    pq.write_table(pa.table({"picture": ["x"], "label": [0]}), tmp_path / "a.parquet")
    refused(
        capsys,
        *run(tmp_path / "r", "data.name=parquet", f"data.root={tmp_path / 'a.parquet'}"),
        says=r"a\.parquet",
    )


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run and make it unfinished: remove its last checkpoint and its `done`."""
    record = trained(tiny(), tmp_path_factory.mktemp("begun"))
    (record.path / "done").unlink()
    checkpoints(record.path / "checkpoints")[-1].unlink()
    return record.path


@pytest.fixture
def begun(unfinished: Path, tmp_path: Path) -> Record:
    """Return a copy of the unfinished run, for a test to damage."""
    return Record(shutil.copytree(unfinished, tmp_path / unfinished.name))


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "tampered":
        path.write_bytes(content[:-8] + b"\1" * 8)
    elif how == "pickled":
        path.write_bytes(pickle.dumps({"model": 1}))
    elif how == "torch":
        torch.save({"model": torch.zeros(1)}, path)
    elif how == "empty":
        path.write_bytes(b"")


@pytest.mark.parametrize("how", ["truncated", "tampered", "pickled", "torch", "empty"])
def test_damaged_checkpoint_is_rejected_and_nothing_changes(capsys, begun: Record, how: str) -> None:
    path = checkpoints(begun.path / "checkpoints")[-1]
    damage(path, how)
    before = {
        file: file.read_bytes() for file in begun.path.rglob("*") if file.is_file() and file.name != "lock"
    }
    refused(capsys, *run(begun.path.parent), says=rf"{path.name} is (damaged|not a readable checkpoint)")
    refused(capsys, "eval", begun.path, says=path.name)
    assert {
        file: file.read_bytes() for file in begun.path.rglob("*") if file.is_file() and file.name != "lock"
    } == before


def test_checkpoint_of_another_run_is_rejected(capsys, begun: Record, tmp_path: Path) -> None:
    other = trained(tiny("seed=1"), tmp_path / "other")
    shutil.copy(checkpoints(other.path / "checkpoints")[-1], begun.path / "checkpoints")
    refused(capsys, *run(begun.path.parent), says=f"belongs to run {other.id}")


def test_run_directory_in_use_is_rejected(capsys, begun: Record) -> None:
    code = (
        "import sys; from pathlib import Path; from harness.records.record_writer import RecordWriter\n"
        "with RecordWriter(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, begun.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        holder.stdout.readline()
        refused(capsys, *run(begun.path.parent), says=f"in use by process {holder.pid}")
        holder.stdin.close()


def test_broken_record_is_rejected_with_its_line(capsys, begun: Record) -> None:
    file = begun.path / "events.jsonl"
    file.write_text(file.read_text().replace('"kind":"train"', '"kind":7', 1))
    refused(capsys, *run(begun.path.parent), says=r"events.jsonl line 1 is not an event")
    refused(
        capsys, "report", begun.path.parent, "-o", begun.path.parent / "r.html", says=r"events.jsonl line 1"
    )
    (begun.path / "spec.toml").write_text("seed = [")
    refused(capsys, "eval", begun.path, says=r"spec.toml is not TOML")


def test_sample_overwrites_no_file_and_names_available_steps(capsys, begun: Record, tmp_path: Path) -> None:
    picture = tmp_path / "mine.png"
    picture.write_text("mine")
    refused(capsys, "sample", begun.path, "-n", 4, "-o", picture, says=r"mine.png already exists")
    refused(capsys, "sample", begun.path, "-o", tmp_path / "a.gif", says=r"must end in .png .* or .npz")
    refused(
        capsys,
        "sample",
        begun.path,
        "--step",
        3,
        "-o",
        tmp_path / "b.png",
        says=r"no checkpoint at step 3 \(available: ",
    )
    refused(capsys, "eval", begun.path, "--set", "train.steps=3", says=r"only eval\.\*, runtime")
    assert picture.read_text() == "mine"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 4 MB, less than the checkpoints of the run take."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_full_disk_ends_a_run_with_one_sentence(capsys, small_disk: Path) -> None:
    refused(
        capsys,
        *run(small_disk, "train.keep_checkpoints=9"),
        says=r"No space left on device.*the same command",
    )
    path = small_disk / tiny().id
    assert Record(path).events is not None and not list(path.rglob("*.tmp"))


def test_full_disk_ends_a_study_before_its_lock(small_disk: Path) -> None:
    with open(small_disk / "fill", "wb", buffering=0) as fill, contextlib.suppress(OSError):
        while True:
            fill.write(bytes(4096))
    refusal = pytest.raises(UserError, match=r"cannot write the folder .*: No space left on device")
    with refusal, study_lock(small_disk):
        pytest.fail("the lock was taken without naming its holder")


def test_run_rejects_a_folder_that_is_not_named_by_its_spec(capsys, tmp_path: Path) -> None:
    """Training a renamed copy would start a second run next to it."""
    spec, folder = tiny(), tmp_path / "mine"
    folder.mkdir()
    (folder / "spec.toml").write_text(spec.to_toml())
    says = rf"mine does not match the run id {spec.id} in its spec.toml. Rename the folder"
    refused(capsys, "run", folder, "--no-track", says=says)
    for empty in ("", "# nothing\n"):
        (folder / "spec.toml").write_text(empty)
        refused(capsys, "run", folder, "--no-track", says=r"spec.toml is empty: a spec sets at least")
        refused(capsys, "cost", folder / "spec.toml", says=r"spec.toml is empty: a spec sets at least")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "spec.toml"]


def test_run_rejects_an_output_folder_that_cannot_be_written(capsys, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(capsys, *run(tmp_path / "file"), says=r"Directory .* is a file")
    refused(
        capsys, *run(tmp_path / "file" / "below"), says=r"cannot write the run directory .*: Not a directory"
    )
    refused(capsys, *run(Path("/proc")), says=r"cannot write the run directory /proc/")
