"""Latents of other code are trained on from where they are, by one command: `data.root` names them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from harness.assembly.resolve import load_spec
from harness.config.data_spec import DataSpec
from harness.data.found import found_in
from harness.data.open import open_dataset
from harness.data.pin import pinned
from harness.errors import UserError
from harness.latents.foreign import key_of_import
from harness.records.record import Record
from tests.harness.latents.vae import save_vae
from tests.support.commands import flowrace
from tests.support.forked import die, in_child
from tests.support.latent_layouts import (
    LABELS,
    attempt,
    files_below,
    import_data,
    moments,
    npy,
    npz,
    repa_files,
    safetensors_files,
    stored,
    write,
)
from tests.support.runs import TINY

PLAIN = (
    *(word for word in TINY if not word.startswith(("data.", "train.steps", "eval.samples"))),
    "data.name=latents", "data.held_out=0.5", "data.resolution=32", "train.steps=2", "eval.samples=4",
)  # fmt: skip
DRAWS = np.random.default_rng(2).normal(0, 1, (len(LABELS), 2, 3, 4, 4)).astype(np.float32)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLOWRACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def repa(tmp_path: Path) -> Path:
    return write(tmp_path / "data" / "vae-sd", repa_files(moments()[:, 0])).parent


def opened(root: Path, **fields: object):
    return open_dataset(DataSpec(**({"name": "latents", "root": str(root), "resolution": 32} | fields)))


def refused(root: Path, **fields: object) -> str:
    with pytest.raises(UserError) as reason:
        opened(root, **fields)
    return str(reason.value)


def toml(folder: Path) -> str:
    """Write a spec that names no metrics."""
    file = folder / "plain.toml"
    file.write_text('[backbone]\nsize = "pico"\n')
    return str(file)


def run(source: str, root: Path, out: Path, *settings: str):
    fields = (*PLAIN, f"data.root={root}", *settings)
    words = [word for field in fields for word in ("--set", field)]
    return flowrace("run", source, *words, "--out", out, "--no-track")


def lightningdit(root: Path) -> Path:
    safetensors_files(root, DRAWS)
    statistics = {"mean": torch.zeros(1, 3, 1, 1), "std": torch.ones(1, 3, 1, 1)}
    torch.save(statistics, root / "latents_stats.pt")
    return root


def mar(root: Path) -> Path:
    records = moments(logvar=True, channels=16, copies=2) * np.float32(0.9)
    names = (f"n{label}/image_{number}.JPEG.npz" for number, label in enumerate(LABELS))
    files = zip(names, records, strict=True)
    return write(root, {name: npz(moments=one[0], moments_flip=one[1]) for name, one in files})


def uvit(root: Path) -> Path:
    records = moments(logvar=True)[:, 0]
    files = {f"{number}.npy": npy(record) for number, record in enumerate(records)}
    return write(root, files | {"0_0.npy": npy(np.zeros((7, 6), np.float32))})


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "repa": lambda root: write(root / "vae-sd", repa_files(moments()[:, 0])).parent,
    "repa zip": lambda root: write(root / "vae-sd.zip", repa_files(moments()[:, 0])).parent,
    "one zip": lambda root: write(root / "vae-sd.zip", repa_files(moments()[:, 0])),
    "lightningdit": lightningdit,
    "mar": mar,
    "uvit": uvit,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_opens_as_its_import_does(tmp_path: Path, name: str) -> None:
    root = LAYOUTS[name](tmp_path / "data" / "source")
    before = {file: file.read_bytes() for file in files_below(tmp_path / "data")}
    data = opened(root)
    row = import_data(root, tmp_path / "out", "--resolution", "32")
    other = opened(tmp_path / "out")
    place, noise = np.arange(len(data)), torch.randn(len(data), *data.shape)
    assert (len(data), list(data.shape), data.classes) == (row["samples"], row["shape"], row["classes"])
    assert torch.equal(data.draws(place, None, noise), other.draws(place, None, noise))
    assert [data.label(i) for i in place] == [other.label(i) for i in place]
    assert {file: file.read_bytes() for file in files_below(tmp_path / "data")} == before


@pytest.mark.parametrize("name", ["repa zip", "lightningdit"])
def test_uncompressed_records_stay_where_they_are(tmp_path: Path, cache: Path, name: str) -> None:
    root = LAYOUTS[name](tmp_path / "source")
    opened(root)
    (folder,) = (path for path in (cache / "imported").iterdir() if path.is_dir())
    assert stored(folder).shape[2:] == (2,) and stored(folder).dtype == np.int64


def test_fingerprint_depends_on_content_and_not_on_the_cache_or_the_location(
    tmp_path: Path, repa: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = load_spec(toml(tmp_path), (*PLAIN, f"data.root={repa}"))
    first = pinned(spec).id
    monkeypatch.setenv("FLOWRACE_CACHE", str(tmp_path / "elsewhere"))
    (repa / "README.md").write_text("a changed stamp")
    repa.rename(tmp_path / "moved")
    moved = load_spec(toml(tmp_path), (*PLAIN, f"data.root={tmp_path / 'moved'}"))
    assert pinned(moved).id == first
    other = write(tmp_path / "other" / "vae-sd", repa_files(moments()[::-1, 0])).parent
    assert pinned(load_spec(toml(tmp_path), (*PLAIN, f"data.root={other}"))).id != first


def test_changed_source_is_imported_again(tmp_path: Path, repa: Path) -> None:
    first = opened(repa).fingerprint
    file = next((repa / "vae-sd").rglob("*.npy"))
    file.write_bytes(npy(np.flip(np.load(file)[:4], 0).repeat(2, 0).clip(0.01)))
    assert opened(repa).fingerprint != first


def keyed(root: Path, **fields: object) -> str:
    return key_of_import(root, DataSpec(**({"name": "latents", "root": str(root)} | fields)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name == "repa" else pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS]
)
def test_key_of_an_import_depends_on_every_file_that_is_read_and_on_no_other(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = LAYOUTS[name](tmp_path / "data" / "source")
    before = keyed(root)
    for file in files_below(root) if root.is_dir() else [root]:
        file.chmod(0o644 if file.stat().st_mode & 0o077 != 0o044 else 0o600)
    (root if root.is_dir() else root.parent).joinpath(".DS_Store").write_text("left")
    write(root if root.is_dir() else root.parent, {"runs/a-0/record.log": b"written by a run"})
    monkeypatch.chdir(root.parent)
    assert keyed(root) == keyed(Path(root.name)) == before
    for file in files_below(root) if root.is_dir() else [root]:
        if file.name not in (".DS_Store", "record.log"):
            file.write_bytes(file.read_bytes() + b" ")
            before, changed = keyed(root), before
            assert before != changed, file


def test_key_of_an_import_depends_on_files_outside_of_the_root(tmp_path: Path) -> None:
    file = next(lightningdit(tmp_path / "draws").glob("*.safetensors"))
    coco = uvit(tmp_path / "coco" / "train")
    images = write(tmp_path / "images", {"0.png": b"an image"})
    weights = write(tmp_path / "weights", {"config.json": b"{}"})
    keys = {
        tmp_path / "draws" / "latents_stats.pt": lambda: keyed(file),
        tmp_path / "coco" / "empty_context.npy": lambda: keyed(coco),
        images / "0.png": lambda: keyed(file, images=str(images)),
        weights / "config.json": lambda: keyed(file, codec="sd-vae", codec_weights=str(weights)),
    }
    for outside, key in keys.items():
        before = key()
        outside.write_bytes(b"another content")
        assert key() != before, outside


def test_key_without_weights_does_not_depend_on_the_working_folder(
    repa: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keyed(repa, codec="sd-vae")
    monkeypatch.chdir(write(tmp_path / "elsewhere", {"a": b"file"}))
    assert keyed(repa, codec="sd-vae") == before


def test_earlier_import_of_a_changed_source_is_named(
    repa: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened(repa)
    (earlier,) = (path for path in (cache / "imported").iterdir() if path.is_dir())
    assert "earlier import" not in capsys.readouterr().err
    file = next((repa / "vae-sd").rglob("*.npy"))
    file.write_bytes(npy(np.load(file) / 2))
    opened(repa)
    assert f"an earlier import of {repa} is in {earlier}; remove it if no run reads it" in (
        capsys.readouterr().err
    )


def test_interrupted_copy_needs_room_for_the_rest_only(
    repa: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = SimpleNamespace(free=0)
    monkeypatch.setattr("harness.latents.foreign.shutil.disk_usage", lambda _: full)
    assert "needs 0.0 GB in the cache" in refused(repa)
    key = keyed(repa, resolution=32)
    shard = cache / "imported" / key / "shard-00000.npy"
    write(shard.parent, {".shard-00000.npy.tmp": bytes(48 * 2 * 4 * 4 * 4 * 4)})
    with pytest.raises(UserError, match="holds no encoding to continue"):
        opened(repa)


def test_run_without_codec_trains_and_measures_without_decoding(tmp_path: Path, repa: Path) -> None:
    """The command is one; no metrics are named, so that those without decoding are the default."""
    result = run(toml(tmp_path), repa, tmp_path / "runs")
    assert result.exit_code == 0, result.output
    assert "48 samples, 3 classes: 0 16, 1 16, 2 16 (label source: dataset.json)" in result.output
    assert "layout repa: latents 4x4x4 float32" in result.output
    assert result.output.count("no samples are drawn") == 1
    record = Record(Path(result.stdout.rstrip().splitlines()[-1]))
    (event,) = record.of("eval")
    assert record.status == "done" and event["metrics"]["loss:held_out"]["mean"] > 0
    assert "set data.codec" in record.environment[0]["evaluation"]["samples_skipped"]
    assert not list(record.path.glob("samples/*.png"))
    again = run(str(record.path), repa, tmp_path / "runs")
    assert again.exit_code == 0 and "already finished" in again.output

    # Samples of such a run need a codec, which may be named later and only decodes.
    drawing = ("sample", record.path, "-n", 2, "--npz", tmp_path / "samples.npz")
    assert "set data.codec" in str(flowrace(*drawing).exception)
    codec = f"data.codec=sd-vae:{save_vae(tmp_path / 'vae', blocks=4)}"
    assert flowrace(*drawing, "--set", codec).exit_code == 0
    with np.load(tmp_path / "samples.npz") as archive:
        assert archive["arr_0"].shape == (2, 32, 32, 3)


@pytest.mark.parametrize("kind", ["as it is", "imported"])
def test_metrics_of_decoded_samples_are_refused_without_a_codec(
    tmp_path: Path, repa: Path, kind: str
) -> None:
    if kind == "imported":
        import_data(repa, tmp_path / "out", "--resolution", "32")
        repa = tmp_path / "out"
    with pytest.raises(UserError, match=r"'fid' reads decoded samples, but .*set data\.codec.*loss:held_out"):
        load_spec(toml(tmp_path), (*PLAIN, f"data.root={repa}", 'eval.metrics=["fid"]'))
    assert load_spec(toml(tmp_path), (*PLAIN, f"data.root={repa}")).eval.metrics == ("loss:held_out",)
    none = load_spec(toml(tmp_path), (*PLAIN, f"data.root={repa}", "data.held_out=0"))
    assert none.eval.metrics == ()


def test_codec_is_checked_and_decodes(tmp_path: Path, repa: Path) -> None:
    """The spread of the latents is compared with the scale of the named codec."""
    codec = save_vae(tmp_path / "vae", blocks=4, scaling_factor=0.18215)
    data = opened(repa, codec="sd-vae", codec_weights=str(codec))
    assert data.codec(torch.device("cpu")).shape((3, 32, 32)) == (4, 4, 4)
    other = save_vae(tmp_path / "other", blocks=4, scaling_factor=3.0)
    reason = refused(repa, codec="sd-vae", codec_weights=str(other))
    assert "standard deviation is 14.9 after scale 3" in reason and "likely 0.18215" in reason
    assert f"options of flowrace data import {repa} --out DIR" in reason


def test_ambiguous_sources_are_refused_with_the_choices(tmp_path: Path, repa: Path) -> None:
    draws = safetensors_files(tmp_path / "draws", DRAWS)
    assert "add data.codec=sd-vae:FOLDER, --scale" in refused(draws)
    assert "add data.resolution, for example data.resolution=32" in refused(repa, resolution=None)
    write(repa / "vae-sdxl", repa_files(moments()[:, 0]))
    assert "several sets of latents (vae-sd, vae-sdxl); give one of them" in refused(repa)
    unlabelled = {k: v for k, v in repa_files(moments()[:, 0]).items() if k != "dataset.json"}
    root = write(tmp_path / "vae-sd", unlabelled)
    assert "has no dataset.json with labels; add it, or set data.label_key=none" in refused(root)
    data = opened(root, label_key="none")
    assert (data.classes, found_in(data).label_source) == (1, "none: data.label_key = none")


def test_labels_of_an_import_can_be_left_out(tmp_path: Path, repa: Path) -> None:
    import_data(repa, tmp_path / "out", "--resolution", "32")
    data = opened(tmp_path / "out", label_key="none")
    assert data.classes == 1 and {data.label(i) for i in range(48)} == {0}
    assert "latents have one label per sample" in refused(tmp_path / "out", label_key="class")


def test_killed_import_is_resumed_by_the_same_command(tmp_path: Path, repa: Path, cache: Path) -> None:
    from harness.latents.importing import Importing

    def dies() -> None:
        original = Importing.moments

        def cut(job: Importing, *given: object):
            yield next(original(job, *given))[:3]
            die()

        Importing.moments = cut
        opened(repa)

    in_child(dies)
    (folder,) = (path for path in (cache / "imported").iterdir() if path.is_dir())
    assert (folder / "encoding.json").exists() and not (folder / "latents.json").exists()
    assert len(opened(repa)) == 48
    import_data(repa, tmp_path / "calm", "--resolution", "32")
    assert json.loads((folder / "latents.json").read_text()) == json.loads(
        (tmp_path / "calm" / "latents.json").read_text()
    )


def test_bfloat16_stays_in_its_file(tmp_path: Path) -> None:
    halves = torch.from_numpy(DRAWS[:, 0]).bfloat16()
    save_file({"latents": halves, "labels": torch.tensor(LABELS)}, tmp_path / "a.safetensors")
    torch.save({"mean": torch.zeros(3), "std": torch.ones(3)}, tmp_path / "latents_stats.pt")
    data = opened(tmp_path / "a.safetensors")
    assert torch.equal(data.draws(np.arange(48), None, torch.zeros(48, 3, 4, 4)), halves.float())


def test_folder_of_images_is_no_latents_and_the_message_says_how_to_read_it(tmp_path: Path) -> None:
    files = {f"a/{n}.png": b"" for n in range(3)} | {"dataset.json": b'{"labels": null}'}
    archive = write(tmp_path / "images.zip", files)
    reason = str(attempt(archive, tmp_path / "out").exception)
    assert "holds images, which need no import: train on them with --set data.name=zip" in reason
    folder = write(tmp_path / "images", files)
    assert "no known layout" in str(attempt(folder, tmp_path / "out").exception)
    assert "has no latents.json" in refused(folder)
