"""REPA's layout is imported as it is: folders and EDM2 zip files, checked against codec and images."""

from __future__ import annotations

import json
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from harness.assembly.resolve import load_spec
from harness.cli.main import cli
from harness.config.data_spec import DataSpec
from harness.data.found import found_in
from harness.data.open import images, open_dataset
from harness.errors import UserError
from harness.latents import encode as writing
from harness.latents.importing import Importing
from harness.runtime.random_streams import Streams
from sweeps.cli.evaluate import evaluate
from tests.harness.evaluation.samples.networks import save_means
from tests.harness.latents.vae import save_vae
from tests.support.encoded import content
from tests.support.forked import die, in_child
from tests.support.latent_layouts import (
    LABELS,
    SPREAD,
    attempt,
    files_below,
    image_files,
    import_data,
    moments,
    npy,
    repa_files,
    stored,
    words,
    write,
)
from tests.support.mutations import check_mutated_imports
from tests.support.runs import TINY, trained

PIXELS = np.random.default_rng(0).integers(0, 256, (len(LABELS), 8, 8, 3), dtype=np.uint8)
ALONE = ("--resolution", "32")
"""Options of an import without codec and images."""


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder whose scale fits its latents."""
    return save_vae(tmp_path_factory.mktemp("vae"), scaling_factor=0.9)


@pytest.fixture(scope="module")
def encoded(vae: Path) -> np.ndarray:
    """Return what REPA's preprocessing stores: mean and standard deviation of diffusers' posterior."""
    from diffusers import AutoencoderKL

    x = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1
    with torch.no_grad():
        posterior = AutoencoderKL.from_pretrained(vae).encode(x).latent_dist
    return torch.cat([posterior.mean, posterior.std], dim=1).numpy()


@pytest.fixture(scope="module")
def repa(tmp_path_factory: pytest.TempPathFactory, encoded: np.ndarray) -> Path:
    root = tmp_path_factory.mktemp("repa")
    write(root / "images", image_files(PIXELS))
    write(root / "vae-sd", repa_files(encoded))
    return root


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory, repa: Path, vae: Path) -> Path:
    out = tmp_path_factory.mktemp("out") / "latents"
    import_data(repa, out, "--codec", f"sd-vae:{vae}", "--rows", "5")
    return out


def opened(root: Path, **fields: object):
    return open_dataset(DataSpec(name="latents", root=str(root), **fields))


def test_latents_are_the_sources_bit_for_bit(latents: Path, vae: Path, encoded: np.ndarray) -> None:
    assert np.array_equal(stored(latents).reshape(len(LABELS), 8, 4, 4), encoded)


def test_draws_are_those_of_repas_training(latents: Path, vae: Path, encoded: np.ndarray) -> None:
    """REPA train.py, `sample_posterior`: (mean + std * noise) * scale."""
    data = opened(latents)
    place = np.array([11, 0, 7])
    noise = Streams(0).normal("posterior", place, data.shape)
    mean, std = torch.from_numpy(encoded[place]).chunk(2, dim=1)
    scale = json.loads((vae / "config.json").read_text())["scaling_factor"]
    torch.testing.assert_close(data.draws(place, None, noise), (mean + std * noise) * scale)


def test_images_and_labels_are_those_of_the_source(latents: Path) -> None:
    data = opened(latents)
    pixels, labels = images(data, np.arange(len(LABELS)))
    assert np.array_equal(pixels.transpose(0, 2, 3, 1), PIXELS)
    assert tuple(labels) == LABELS == tuple(data.label(i) for i in range(len(LABELS)))
    found = found_in(data)
    assert (found.label_source, dict(found.classes)) == ("dataset.json", {"0": 16, "1": 16, "2": 16})


@pytest.mark.slow
def test_training_on_an_import_takes_one_command(latents: Path, tmp_path: Path) -> None:
    fields = [word for word in TINY if not word.startswith(("data.", "train.steps"))]
    fields += ["data.name=latents", f"data.root={latents}", "train.steps=2", "data.held_out=0.5"]
    fields += ["eval.samples=4", "method.name=repa", "method.encoder.name=random:tiny"]
    settings = [word for field in fields for word in ("--set", field)]
    out = ["--out", str(tmp_path / "runs"), "--no-track"]
    result = CliRunner().invoke(cli, ["run", "digits", *settings, *out], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "48 samples, 3 classes" in result.output


def test_latents_without_images_train_against_a_file_of_statistics(
    tmp_path: Path, vae: Path, encoded: np.ndarray
) -> None:
    save_means(tmp_path)
    network = f"torchscript:{tmp_path / 'means.ts'}"
    np.savez(tmp_path / "real.npz", arr_0=PIXELS)
    statistics = tmp_path / "real.safetensors"
    saved = [str(tmp_path / "real.npz"), "--extractor", network, "--save-stats", str(statistics)]
    assert CliRunner().invoke(evaluate, saved, catch_exceptions=False).exit_code == 0
    root = write(tmp_path / "vae-sd", repa_files(encoded))
    import_data(root, tmp_path / "l", "--codec", f"sd-vae:{vae}")
    fields = [word for word in TINY if not word.startswith(("data.", "train.steps"))]
    fields += ["data.name=latents", f"data.root={tmp_path / 'l'}", "data.held_out=0", "train.steps=2"]
    fields += [f'eval.metrics=["fd:{network}"]', f"eval.reference={statistics}", "eval.samples=48"]
    record = trained(load_spec("digits", tuple(fields)), tmp_path / "runs")
    (value,) = record.of("eval")[-1]["metrics"].values()
    assert value["mean"] > 0


def test_zip_files_are_the_folders(tmp_path: Path, repa: Path, vae: Path, encoded: np.ndarray) -> None:
    root = tmp_path / "zipped"
    write(root / "vae-sd.zip", repa_files(encoded))
    write(root / "images.zip", image_files(PIXELS))
    import_data(root, tmp_path / "l", "--codec", f"sd-vae:{vae}", "--rows", "5")
    one, other = opened(tmp_path / "l"), opened(latents_of(tmp_path, repa, vae))
    assert np.array_equal(stored(tmp_path / "l"), stored(tmp_path / "again"))
    assert one.pictures.fingerprint == other.pictures.fingerprint
    assert [one.key(i) for i in range(48)] == [other.key(i) for i in range(48)]


def latents_of(tmp_path: Path, repa: Path, vae: Path) -> Path:
    import_data(repa, tmp_path / "again", "--codec", f"sd-vae:{vae}", "--rows", "5")
    return tmp_path / "again"


def test_fingerprint_does_not_depend_on_the_location(tmp_path: Path) -> None:
    prints = []
    for place in ("here", "there/deeper"):
        root = write(tmp_path / place / "vae-sd", repa_files(moments()[:, 0]))
        prints.append(import_data(root, tmp_path / place / "out", *ALONE)["fingerprint"])
    assert prints[0] == prints[1]


def test_import_without_codec_takes_the_scale_of_repa(tmp_path: Path) -> None:
    root = write(tmp_path / "vae-sd", repa_files(moments()[:, 0]))
    row = import_data(root, tmp_path / "out", *ALONE)
    assert row["codec"]["scale"] == 0.18215 and row["pixels"] == [3, 32, 32]
    data = opened(tmp_path / "out")
    with pytest.raises(UserError, match="imported without its images"):
        images(data, np.array([0]))
    with pytest.raises(UserError, match=r"without a codec, which decodes samples; set data\.codec"):
        data.codec(torch.device("cpu"))


@pytest.mark.parametrize(
    ("factor", "options", "advice"),
    [
        (1 / SPREAD, (), "they seem to be scaled already: add --stored-scale FACTOR .0.18215 for SD-VAE"),
        (1.0, ("--scale", "1"), r"is likely 0\.18215 \(SD-VAE\): add --scale 0\.18215"),
        (1.0, ("--scale", "0.01"), "add --scale"),
        (0.0, (), "they are constant"),
    ],
)
def test_latents_that_do_not_fit_the_scale_are_refused_with_the_likely_one(
    tmp_path: Path, factor: float, options: tuple[str, ...], advice: str
) -> None:
    root = write(tmp_path / "vae-sd", repa_files(moments()[:, 0] * np.float32(factor)))
    result = attempt(root, tmp_path / "out", *ALONE, *options)
    assert isinstance(result.exception, UserError), result.output
    with pytest.raises(UserError, match=advice):
        raise result.exception
    assert not (tmp_path / "out").exists()
    import_data(root, tmp_path / "out", *ALONE, *options, "--any-scale")


def test_scaled_latents_are_decoded_by_the_codecs_scale(
    tmp_path: Path, vae: Path, repa: Path, encoded: np.ndarray
) -> None:
    """Latents that contain a factor give the same draws and decoded images as raw ones."""
    scaled = encoded * np.float32(0.5)
    root = write(tmp_path / "vae-sd", repa_files(scaled))
    options = ("--codec", f"sd-vae:{vae}", "--images", str(repa / "images"), "--stored-scale", "0.5")
    import_data(root, tmp_path / "scaled", *options)
    raw, other = opened(latents_of(tmp_path, repa, vae)), opened(tmp_path / "scaled")
    noise = torch.zeros(3, *raw.shape)
    one = raw.draws(np.arange(3), None, noise)
    torch.testing.assert_close(other.draws(np.arange(3), None, noise), one)
    cpu = torch.device("cpu")
    torch.testing.assert_close(other.codec(cpu).decode(one), raw.codec(cpu).decode(one))


@pytest.mark.parametrize("other", ["codec", "order"])
def test_latents_of_another_codec_or_order_are_refused(
    tmp_path: Path, vae: Path, repa: Path, encoded: np.ndarray, other: str
) -> None:
    if other == "codec":
        codec, files = save_vae(tmp_path / "vae", seed=1, scaling_factor=1.0), repa_files(encoded)
    else:
        codec, files = vae, repa_files(encoded[::-1])
    root = write(tmp_path / "repa" / "vae-sd", files).parent
    (root / "images").symlink_to(repa / "images")
    result = attempt(root, tmp_path / "out", "--codec", f"sd-vae:{codec}", "--any-scale")
    assert isinstance(result.exception, UserError) and "they differ by" in str(result.exception)
    assert not (tmp_path / "out").exists()


def with_table(rows: object) -> dict[str, bytes]:
    return repa_files(moments()[:, 0]) | {"dataset.json": json.dumps({"labels": rows}).encode()}


def without(name: str) -> dict[str, bytes]:
    files = repa_files(moments()[:, 0])
    del files[name]
    return files


FIRST, LAST = "00000/img-mean-std-00000000.npy", "00009/img-mean-std-00000047.npy"
SHAPE = npy(moments(side=5)[0, 0])
BROKEN = {
    "truncated": (repa_files(moments()[:, 0]) | {LAST: npy(moments()[0, 0])[:-9]}, "has 503 bytes of data"),
    "empty": (repa_files(moments()[:, 0]) | {LAST: b""}, "is not a .npy file"),
    "shape": (repa_files(moments()[:, 0]) | {LAST: SHAPE}, "8x5x5 float32, but .*8x4x4"),
    "type": (repa_files(moments()[:, 0]) | {LAST: npy(moments()[0, 0].astype("f2"))}, "float16, but"),
    "integers": (repa_files(moments()[:, 0].astype(np.int16)), "is of type int16"),
    "batch": (repa_files(moments()), None),
    "nan": (repa_files(moments()[:, 0] * np.float32(np.nan)), "not finite"),
    "logvar": (repa_files(moments(logvar=True)[:, 0]), "add --holds logvar"),
    "odd": (repa_files(moments()[:, 0, :7]), "no pair of mean and std"),
    "no_table": (without("dataset.json"), "has no dataset.json"),
    "no_rows": (with_table([[FIRST, 0]]), "is not listed in dataset.json"),
    "foreign_row": (with_table([["../x.npy", 0]]), "lists ../x.npy"),
    "label": (with_table([[FIRST, -1]]), "expected a class number"),
    "huge_label": (with_table([[FIRST, 10**9]]), "expected a class number from 0 to 999"),
    "text_label": (with_table([[FIRST, "cat"]]), "expected a class number"),
    "table": (repa_files(moments()[:, 0]) | {"dataset.json": b"{"}, "not a readable table"),
    "none": ({"dataset.json": b"{}"}, "no .npy files"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["", ".zip"])
@pytest.mark.parametrize("name", BROKEN)
def test_broken_latents_are_refused_in_one_sentence(tmp_path: Path, name: str, suffix: str) -> None:
    files, message = BROKEN[name]
    root = write(tmp_path / f"vae-sd{suffix}", files)
    before = {path: path.read_bytes() for path in files_below(tmp_path)}
    result = attempt(root, tmp_path / "out", *ALONE)
    if message is None:
        assert result.exit_code == 0
        return
    assert isinstance(result.exception, UserError), result.output
    with pytest.raises(UserError, match=message):
        raise result.exception
    assert {path: path.read_bytes() for path in files_below(tmp_path)} == before


@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_pickled_array_is_refused_and_not_executed(tmp_path: Path, suffix: str) -> None:
    mark = tmp_path / "executed"

    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (mark,))

    payload = np.empty(1, dtype=object)
    payload[0] = Payload()
    root = write(tmp_path / f"vae-sd{suffix}", repa_files(moments()[:, 0]) | {LAST: npy(payload)})
    result = attempt(root, tmp_path / "out", *ALONE)
    assert isinstance(result.exception, UserError) and "never executed" in str(result.exception)
    assert not mark.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../outside.npy", "/outside.npy", "a/../../outside.npy", "C:\\outside.npy"])
def test_zip_member_outside_of_the_archive_is_refused(tmp_path: Path, name: str) -> None:
    root = write(tmp_path / "vae-sd.zip", repa_files(moments()[:, 0]) | {name: npy(moments()[0, 0])})
    result = attempt(root, tmp_path / "out", *ALONE)
    assert isinstance(result.exception, UserError) and "outside of the archive" in str(result.exception)


def test_zip_member_that_expands_beyond_a_sample_is_refused_before_it_is_read(tmp_path: Path) -> None:
    root = write(tmp_path / "vae-sd.zip", repa_files(moments()[:, 0]))
    with zipfile.ZipFile(root, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("00009/bomb.npy", npy(np.zeros(2**22, np.float32)))
    result = attempt(root, tmp_path / "out", *ALONE, "--no-labels")
    assert isinstance(result.exception, UserError)
    assert "bomb.npy has 16,777,344 bytes, but at most 66,048 are read" in str(result.exception)


def test_linked_zip_file_gives_the_same_latents_from_where_it_is(tmp_path: Path) -> None:
    root = write(tmp_path / "vae-sd.zip", repa_files(moments()[:, 0]))
    copied = import_data(root, tmp_path / "copied", *ALONE)
    linked = import_data(root, tmp_path / "linked", *ALONE, "--link", "--rows", "20")
    assert linked["linked"] and linked["bytes"] < copied["bytes"] / 2
    one, other = opened(tmp_path / "copied"), opened(tmp_path / "linked")
    noise = torch.randn(48, *one.shape)
    assert torch.equal(one.draws(np.arange(48), None, noise), other.draws(np.arange(48), None, noise))
    content = bytearray(root.read_bytes())
    content[content.index(b"NUMPY") + 200] ^= 1
    root.write_bytes(content)
    with pytest.raises(UserError, match=r"vae-sd\.zip is damaged: its content does not match"):
        opened(tmp_path / "linked", held_out=0.2)


def test_link_is_refused_where_latents_cannot_stay(tmp_path: Path) -> None:
    folder = write(tmp_path / "vae-sd", repa_files(moments()[:, 0]))
    compressed = tmp_path / "vae-sd.zip"
    with zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in repa_files(moments()[:, 0]).items():
            archive.writestr(name, content)
    for source, message in (
        (folder, "has a file for each sample"),
        (tmp_path / "vae-sd.zip", "is compressed"),
    ):
        result = attempt(source, tmp_path / "out", *ALONE, "--link")
        assert isinstance(result.exception, UserError) and message in str(result.exception)
        assert not (tmp_path / "out").exists()


def test_labels_beyond_the_number_of_classes_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "vae-sd", repa_files(moments()[:, 0]))
    result = attempt(root, tmp_path / "out", *ALONE, "--classes", "2")
    assert isinstance(result.exception, UserError) and "has label 2; expected labels from 0 to 1" in str(
        result.exception
    )
    assert import_data(root, tmp_path / "out", *ALONE, "--classes", "1000")["classes"] == 1000


def test_import_resumes_to_the_same_bytes_when_killed(tmp_path: Path) -> None:
    root = write(tmp_path / "vae-sd", repa_files(moments()[:, 0]))
    options = (*ALONE, "--rows", "20")
    import_data(root, tmp_path / "calm", *options)

    def dies_at_a_checksum() -> None:
        original, left = writing.write_atomic, iter(range(2))
        writing.write_atomic = lambda *given: die() if next(left, None) is None else original(*given)
        import_data(root, tmp_path / "killed", *options)

    def dies_inside_a_shard() -> None:
        original = Importing.moments

        def cut(job: Importing, *given: object) -> Iterator[np.ndarray]:
            yield next(original(job, *given))[:3]
            die()

        Importing.moments = cut
        import_data(root, tmp_path / "killed", *options)

    for dying in (dies_at_a_checksum, dies_inside_a_shard):
        assert in_child(dying) == -signal.SIGKILL
        assert not (tmp_path / "killed" / "latents.json").exists()
    assert ".shard-00001.npy.tmp" in content(tmp_path / "killed")
    with pytest.raises(UserError, match=r"flowrace data import has completed"):
        opened(tmp_path / "killed")
    import_data(root, tmp_path / "killed", *options)
    assert content(tmp_path / "killed") == content(tmp_path / "calm")


def test_import_into_another_import_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "vae-sd", repa_files(moments()[:, 0]))
    import_data(root, tmp_path / "out", *ALONE)
    before = content(tmp_path / "out")
    assert CliRunner().invoke(cli, words(root, tmp_path / "out", *ALONE)).exit_code == 0
    result = attempt(root, tmp_path / "out", *ALONE, "--scale", "0.2")
    assert isinstance(result.exception, UserError) and "holds another encoding" in str(result.exception)
    assert content(tmp_path / "out") == before


@pytest.mark.parametrize("count", [25, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["vae-sd", "vae-sd.zip"])
def test_mutated_latents_are_imported_or_refused(tmp_path: Path, name: str, count: int) -> None:
    """Any other exception than `UserError` fails the test, and so does a half-written file."""
    check_mutated_imports(
        write(tmp_path / name, repa_files(moments()[:, 0])), tmp_path / "out", count, *ALONE
    )
