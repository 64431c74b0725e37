"""Export of samples to npz: ADM's layout, and the same bytes after an interruption or by two processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from harness.cli import sample as sample_command
from harness.cli.sample import sample as command
from harness.data.open import open_dataset
from harness.errors import UserError
from harness.evaluation import npz_export
from harness.flow.sampling import sample_labels
from harness.records.checkpoint_files import checkpoints
from harness.records.record import Record
from harness.runtime.random_streams import Streams
from harness.train.trained_run import load_ema
from tests.support.runs import tiny, trained
from tests.support.sampling import draw_samples

pytestmark = pytest.mark.usefixtures("quick_networks")

CPU = torch.device("cpu")
BATCH = ("--set", "eval.batch_size=8")


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return trained(tiny("train.steps=2", "eval.every=2"), tmp_path_factory.mktemp("run"))


def draw(record: Record, output: Path, *words: str, n: int = 30) -> bytes:
    call = [str(record.path), "-n", str(n), "--npz", str(output), *BATCH, *words]
    assert CliRunner().invoke(command, call, catch_exceptions=False).exit_code == 0
    return output.read_bytes()


def test_interrupted_export_gives_the_same_bytes(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = draw(record, tmp_path / "uninterrupted.npz")
    draw_batch, drawn = npz_export.draw_batch, []

    def stopping(*args):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(args[2][0])
        return draw_batch(*args)

    monkeypatch.setattr(npz_export, "draw_batch", stopping)
    output, parts = tmp_path / "cut.npz", tmp_path / "cut.npz.parts"
    call = [str(record.path), "-n", "30", "--npz", str(output), *BATCH]
    assert CliRunner().invoke(command, call).exit_code != 0
    assert not output.exists() and len(list(parts.glob("*.npy"))) == 2
    first = parts / "000000000-000000008.npy"
    # A crash may leave a truncated file.
    first.write_bytes(first.read_bytes()[:-4])
    drawn.clear()

    def counting(*args):
        drawn.append(int(args[2][0]))
        return draw_batch(*args)

    monkeypatch.setattr(npz_export, "draw_batch", counting)
    assert draw(record, output) == expected
    assert drawn == [0, 16, 24] and not parts.exists()


def test_npz_has_the_layout_of_adm(record: Record, tmp_path: Path) -> None:
    draw(record, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as content:
        assert content.files == ["arr_0", "arr_1"]
        pixels, labels = content["arr_0"], content["arr_1"]
    assert pixels.shape == (30, 8, 8, 1) and pixels.dtype == np.uint8 and labels.dtype == np.int64
    spec = tiny("train.steps=2", "eval.every=2", "eval.samples=30", "eval.batch_size=30")
    dataset = open_dataset(spec.data)
    model = load_ema(checkpoints(record.path / "checkpoints")[-1], spec, dataset, CPU)
    drawn = draw_samples(model, spec.eval, dataset.shape, dataset.classes, CPU)
    # The rounding depends on the batch size.
    np.testing.assert_allclose(drawn.permute(0, 2, 3, 1), pixels, atol=1)
    np.testing.assert_array_equal(
        sample_labels(spec.eval, Streams(spec.eval.seed), np.arange(30), 10), labels
    )


def test_classes_option_limits_the_labels(record: Record, tmp_path: Path) -> None:
    draw(record, tmp_path / "a.npz", "--classes", "3,7")
    assert set(np.load(tmp_path / "a.npz", allow_pickle=False)["arr_1"]) == {3, 7}
    with pytest.raises(UserError, match=r"--classes 10: this run has classes 0 \.\. 9"):
        draw(record, tmp_path / "b.npz", "--classes", "10")
    with pytest.raises(UserError, match="expected whole numbers"):
        draw(record, tmp_path / "b.npz", "--classes", "cat")
    assert not (tmp_path / "b.npz.parts").exists()


def test_export_rejects_batches_of_another_job(record: Record, tmp_path: Path) -> None:
    folder = tmp_path / "a.npz.parts"
    folder.mkdir()
    (folder / npz_export.JOB).write_text('{"job": "another"}')
    with pytest.raises(UserError, match=r"a\.npz\.parts holds batches of other samples"):
        draw(record, tmp_path / "a.npz")
    with pytest.raises(UserError, match="both name the file"):
        draw(record, tmp_path / "a.npz", "-o", str(tmp_path / "b.png"))


@pytest.mark.slow
def test_second_export_to_one_file_is_rejected_while_the_first_runs(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, rejected = draw(record, tmp_path / "uninterrupted.npz"), []
    draw_batch = npz_export.draw_batch

    def with_second_export(*args):
        with pytest.raises(UserError, match=rf"a\.npz\.parts is in use by process {os.getpid()} on"):
            draw(record, tmp_path / "a.npz")
        rejected.append(args)
        return draw_batch(*args)

    monkeypatch.setattr(npz_export, "draw_batch", with_second_export)
    assert draw(record, tmp_path / "a.npz") == expected and rejected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "uninterrupted.npz"]


def test_export_does_not_overwrite_a_file_written_meanwhile(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing_of_run = sample_command.drawing_of_run

    def with_file_written(*args):
        (tmp_path / "a.npz").write_text("of another command")
        return drawing_of_run(*args)

    monkeypatch.setattr(sample_command, "drawing_of_run", with_file_written)
    with pytest.raises(UserError, match=r"a\.npz already exists"):
        draw(record, tmp_path / "a.npz")
    assert (tmp_path / "a.npz").read_text() == "of another command"


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(record: Record, tmp_path: Path) -> None:
    expected = draw(record, tmp_path / "one.npz")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [
        "torch.distributed.run",
        "--nproc-per-node=2",
        f"--master-port={port}",
        "--master-addr=127.0.0.1",
    ]
    words = ["sample", str(record.path), "-n", "30", "--npz", str(tmp_path / "two.npz"), *BATCH]
    call = [sys.executable, "-m", *launch, "-m", "harness.cli.main", *words]
    result = subprocess.run(call, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "two.npz").read_bytes() == expected
