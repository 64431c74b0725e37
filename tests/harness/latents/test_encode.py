"""Encoded latents: values, resuming, damage, moved sources, and training on them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from harness.assembly.resolve import load_spec
from harness.cli.main import cli
from harness.config.data_spec import DataSpec
from harness.data.open import images, open_dataset, split
from harness.errors import UserError
from harness.latents import encode as encoding
from harness.records.record import Record
from harness.runtime.random_streams import Streams
from tests.harness.data.pictures import LABELS, folder_of, pixels
from tests.harness.latents.vae import save_images, save_vae
from tests.support.encoded import content, encode
from tests.support.forked import die, in_child
from tests.support.runs import TINY, events, losses, tiny, trained

pytestmark = pytest.mark.usefixtures("quick_networks")


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vae(tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_images(tmp_path_factory.mktemp("images") / "images.npz")


def test_latents_are_scaled_draws_of_the_posterior(tmp_path: Path, vae: Path, pictures: Path) -> None:
    """Compared with diffusers, mirrored images included."""
    from diffusers import AutoencoderKL

    encode(pictures, f"sd-vae:{vae}", tmp_path / "l", "--flip", "--rows", "7", "--batch", "3")
    dataset = open_dataset(DataSpec(name="latents", root=str(tmp_path / "l"), flip=True))
    assert (len(dataset), dataset.classes, dataset.shape) == (20, 3, (4, 4, 4))
    place, flipped = np.array([19, 0, 7, 7]), torch.tensor([False, True, False, True])
    noise = Streams(0).normal("posterior", place, dataset.shape)
    x = torch.from_numpy(images(dataset, place)[0]).float() / 127.5 - 1
    x = torch.where(flipped.reshape(-1, 1, 1, 1), x.flip(-1), x)
    with torch.no_grad():
        posterior = AutoencoderKL.from_pretrained(vae).encode(x).latent_dist
    expected = (posterior.mean + posterior.std * noise) * 0.18215
    torch.testing.assert_close(dataset.draws(place, flipped, noise), expected, rtol=1e-5, atol=1e-6)
    means = torch.from_numpy(np.stack([dataset.sample(int(i)).x for i in place[[0, 2]]]))
    torch.testing.assert_close(means, posterior.mean[[0, 2]] * 0.18215, rtol=1e-5, atol=1e-6)
    assert [dataset.sample(i).label for i in range(5)] == [0, 1, 2, 0, 1]


def test_half_saves_space_and_is_close_to_float32(tmp_path: Path, vae: Path, pictures: Path) -> None:
    full = encode(pictures, f"sd-vae:{vae}", tmp_path / "full")
    half = encode(pictures, f"sd-vae:{vae}", tmp_path / "half", "--half")
    one, other = (open_dataset(DataSpec(name="latents", root=str(tmp_path / n))) for n in ("full", "half"))
    assert half["bytes"] < 0.7 * full["bytes"] and half["fingerprint"] != full["fingerprint"]
    np.testing.assert_allclose(one.sample(3).x, other.sample(3).x, rtol=2**-10, atol=1e-4)


def test_split_of_latents_is_that_of_the_images(tmp_path: Path) -> None:
    encode("digits", "identity", tmp_path / "l")
    one, other = open_dataset(DataSpec()), open_dataset(DataSpec(name="latents", root=str(tmp_path / "l")))
    for expected, indices in zip(split(one, 0.3), split(other, 0.3), strict=True):
        assert np.array_equal(indices, expected)


def test_training_with_identity_is_training_on_the_images(tmp_path: Path) -> None:
    """Losses, metrics and sample grids agree bit for bit; the encoder of REPA reads the images."""
    repa = ("method.name=repa", "method.encoder.name=random:tiny")
    spec = (*repa, "data.flip=true", "eval.grid=4", "eval.every=12")
    encode("digits", "identity", tmp_path / "l", "--flip", "--rows", "500")
    one = trained(tiny(*spec), tmp_path / "one")
    other = trained(tiny(*spec, "data.name=latents", f"data.root={tmp_path / 'l'}"), tmp_path / "other")
    assert losses(one) == losses(other)
    values = [
        [event["metrics"] for event in events(record) if event["kind"] == "eval"] for record in (one, other)
    ]
    assert values[0] == values[1] and values[0]
    png = [(record.path / "samples" / "step-00000012.png").read_bytes() for record in (one, other)]
    assert png[0] == png[1]
    about = [record.environment[0]["evaluation"]["protocol"] for record in (one, other)]
    assert about[1] == about[0] | {"codec": about[1]["codec"]}


@pytest.mark.slow
def test_run_on_latents_is_evaluated_on_decoded_images(tmp_path: Path, vae: Path) -> None:
    encode(save_images(tmp_path / "images.npz", count=60), f"sd-vae:{vae}", tmp_path / "l")
    where = (
        "data.name=latents",
        f"data.root={tmp_path / 'l'}",
        "eval.samples=6",
        "eval.grid=4",
        "data.held_out=0.3",
    )
    spec = tiny(
        *where, "train.steps=4", "eval.every=4", "method.name=repa", "method.encoder.name=random:tiny"
    )
    record = trained(spec, tmp_path / "runs")
    assert record.of("eval")[-1]["metrics"]["fd:local"]["mean"] > 0
    sampled = tmp_path / "s.npz"
    words = ["sample", str(record.path), "-n", "5", "--npz", str(sampled)]
    assert CliRunner().invoke(cli, words, catch_exceptions=False).exit_code == 0
    with np.load(sampled) as archive:
        assert archive["arr_0"].shape == (5, 8, 8, 3) and archive["arr_0"].std() > 0
    words = ["probe", str(record.path), "--encoder", "random:tiny", "--samples", "20", "--json"]
    rows = json.loads(CliRunner().invoke(cli, words, catch_exceptions=False).output)["rows"]
    assert [row["name"] for row in rows] == ["random:tiny", *(f"layer {n}" for n in range(1, 5))]


def test_imagenet256_preset_trains_on_given_latents(tmp_path: Path, vae: Path, pictures: Path) -> None:
    encode(pictures, f"sd-vae:{vae}", tmp_path / "l")
    small = [word for word in TINY if not word.startswith("data.")]
    metrics = 'eval.metrics=["fd:local"]'
    given = (f"data.root={tmp_path / 'l'}", "data.resolution=8", "data.classes=3", "data.workers=0", metrics)
    run = load_spec(
        "imagenet256", (*small, *given, "eval.samples=6", "runtime.compile=false", "train.steps=2")
    )
    assert Record(trained(run, tmp_path / "runs").path).status == "done"


def test_encode_resumes_to_the_same_bytes_when_killed(tmp_path: Path, pictures: Path) -> None:
    options = ("--rows", "4", "--batch", "2")
    encode(pictures, "identity", tmp_path / "calm", *options)

    def dying(writes: int) -> None:
        original, left = encoding.write_atomic, iter(range(writes))
        encoding.write_atomic = lambda *given: die() if next(left, None) is None else original(*given)
        encode(pictures, "identity", tmp_path / "killed", *options)

    for writes in (2, 4):
        assert in_child(lambda writes=writes: dying(writes)) == -signal.SIGKILL
        assert not (tmp_path / "killed" / "latents.json").exists()
    encode(pictures, "identity", tmp_path / "killed", *options)
    assert content(tmp_path / "killed") == content(tmp_path / "calm")


@pytest.mark.slow
def test_encode_resumes_when_killed_before_recording_its_job(tmp_path: Path, pictures: Path) -> None:
    encode(pictures, "identity", tmp_path / "calm")
    script = (
        "import os, signal, sys; replace = os.replace\n"
        "def dies(source, to):\n"
        "    if str(to).endswith('encoding.json'): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    replace(source, to)\n"
        "os.replace = dies; from harness.cli.main import main; main()"
    )
    folder = tmp_path / "killed"
    words = ["data", "encode", str(pictures), "--codec", "identity", "--out", str(folder)]
    died = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, timeout=120)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert not (folder / "encoding.json").exists() and any(folder.iterdir())
    encode(pictures, "identity", folder)
    assert content(folder) == content(tmp_path / "calm")


@pytest.mark.slow
def test_encode_raises_when_the_folder_is_in_use(tmp_path: Path, pictures: Path) -> None:
    """The first process is not disturbed by the second."""
    encode(pictures, "identity", tmp_path / "calm")
    script = (
        "import sys; from harness.latents import encode as e; write = e._write_shard\n"
        "def waits(*given):\n"
        "    print('at work', flush=True); sys.stdin.readline(); write(*given)\n"
        "e._write_shard = waits; from harness.cli.main import main; main()"
    )
    out = tmp_path / "both"
    words = ["data", "encode", str(pictures), "--codec", "identity", "--out", str(out)]
    command = [sys.executable, "-c", script, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "at work\n"
        second = CliRunner().invoke(cli, words)
        assert isinstance(second.exception, UserError) and "is in use by process" in str(second.exception)
        first.communicate("continue\n", timeout=120)
    assert first.returncode == 0
    assert content(out) == content(tmp_path / "calm")
    encode(pictures, "identity", out)


def test_encode_raises_and_leaves_a_folder_of_other_files_unchanged(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear")
    result = CliRunner().invoke(
        cli, ["data", "encode", str(pictures), "--codec", "identity", "--out", str(tmp_path)]
    )
    assert "is not empty and holds no encoding" in str(result.exception)
    assert content(tmp_path) == {"letter.txt": b"Dear"}


def test_encode_does_not_decode_again_when_only_the_index_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The labels in the index come from the names of class folders."""
    root = folder_of(tmp_path / "images", pixels())
    encode(root, "identity", tmp_path / "l")
    before = content(tmp_path / "l")
    monkeypatch.setattr("harness.data.disk.folder.decode", lambda _, where: pytest.fail(where))
    (tmp_path / "l" / "index.npz").unlink()
    encode(root, "identity", tmp_path / "l")
    assert content(tmp_path / "l") == before
    with np.load(tmp_path / "l" / "index.npz") as index:
        assert np.array_equal(index["labels"], LABELS)


def test_damaged_shard_raises_and_is_encoded_again(tmp_path: Path, vae: Path, pictures: Path) -> None:
    folder, options = tmp_path / "l", ("--rows", "8")
    encode(pictures, f"sd-vae:{vae}", folder, *options)
    before, shard = content(folder), folder / "shard-00001.npy"
    changed = bytearray(shard.read_bytes())
    changed[-1] ^= 1
    shard.write_bytes(changed)
    # No other test opens this spec, so it is not cached.
    spec = DataSpec(name="latents", root=str(folder), held_out=0.2)
    with pytest.raises(UserError, match=r"shard-00001.npy is damaged: .* run flowrace data encode again"):
        open_dataset(spec)
    os.utime(folder)
    encode(pictures, f"sd-vae:{vae}", folder, *options)
    assert content(folder) == before
    shard.unlink()
    with pytest.raises(UserError, match=r"shard-00001.npy is missing"):
        open_dataset(spec)


def test_encode_raises_for_unusable_requests(tmp_path: Path, vae: Path, pictures: Path) -> None:
    def error(*words: str) -> str:
        result = CliRunner().invoke(cli, ["data", "encode", *words])
        assert isinstance(result.exception, UserError), result.output
        return str(result.exception)

    out = ("--out", str(tmp_path / "l"))
    encode(pictures, f"sd-vae:{vae}", tmp_path / "l")
    assert "holds another encoding: copies was 1, is now 2" in error(
        str(pictures), "--codec", f"sd-vae:{vae}", "--flip", *out
    )
    assert "no such file or folder, and no data set" in error("nowhere", "--codec", "identity", *out)
    assert "only fields of the source" in error(
        "digits", "--codec", "identity", "--set", "train.steps=1", *out
    )
    assert "encodes image, but these samples are video; use identity or wan-vae" in error(
        "moving_digits", "--codec", f"sd-vae:{vae}", *out
    )
    assert "holds no encoding to continue" in error("digits", "--codec", "identity", "--out", str(vae))
    root = {"name": "latents", "root": str(tmp_path / "l")}
    for fields, message in (
        ({"flip": True}, "holds no moments of mirrored samples"),
        ({"classes": 5}, "data.classes = 5, but .* was encoded from images with 3"),
        ({"resolution": 16}, "data.resolution = 16, but .* with 8"),
    ):
        with pytest.raises(UserError, match=message):
            open_dataset(DataSpec(**root, **fields))


def test_moved_images_are_found_by_data_images(tmp_path: Path, vae: Path) -> None:
    original = save_images(tmp_path / "original.npz")
    encode(original, f"sd-vae:{vae}", tmp_path / "l")
    original.rename(tmp_path / "moved.npz")
    data = open_dataset(DataSpec(name="latents", root=str(tmp_path / "l")))
    with pytest.raises(UserError, match=r"original.npz: no such file or folder.*data.images"):
        _ = data.pictures
    fields = {"name": "latents", "root": str(tmp_path / "l"), "images": str(tmp_path / "moved.npz")}
    assert len(open_dataset(DataSpec(**fields)).pictures) == 20
