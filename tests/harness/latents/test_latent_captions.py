"""Captions of latents: texts are carried along by an encoding, and U-ViT's states condition a run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from harness.assembly.condition import null_text
from harness.assembly.resolve import load_spec
from harness.config.data_spec import DataSpec
from harness.config.spec import RunSpec
from harness.data.dataset import Capabilities
from harness.data.disk.caption_features import open_caption_features
from harness.data.found import found_in
from harness.data.open import open_dataset
from harness.errors import UserError
from harness.evaluation.held_out_loss import HeldOutLoss
from harness.files.files import write_atomic
from harness.latents import captions as captions_module
from harness.latents import encode as encode_module
from harness.latents.captions import STATES, staged_digests, states_file
from harness.latents.encode import _write_staged
from harness.latents.shards import MANIFEST
from harness.records.record import Record
from harness.runtime.distributed import World
from harness.text.captions import RunCaptions, open_captions
from tests.harness.data.captioned_tars import READ, members, texts
from tests.harness.data.containers import tar_of
from tests.harness.data.pictures import pixels, png
from tests.harness.latents.vae import save_vae
from tests.support.encoded import content, encode
from tests.support.latent_layouts import attempt, import_data, moments, states, uvit_files, write
from tests.support.runs import tiny, trained

CPU = torch.device("cpu")
ON_TEXT = ("backbone.kind=mmdit", "backbone.initial=released", "eval.grid=4")
STORED = ("text.encoder=stored", "text.length=7", "text.padding=attended", 'eval.metrics=["loss:held_out"]')
N = 24


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tar_of(tmp_path_factory.mktemp("tar") / "a.tar", members("txt", texts()))


@pytest.fixture(scope="module")
def latents(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latents") / "out"
    encode(pictures, "identity", folder, "--set", "data.caption_key=usual")
    return folder


def data_of(folder: Path, **fields: object):
    return open_dataset(DataSpec(name="latents", root=str(folder), **fields))


def test_encoding_carries_the_captions_of_the_source(latents: Path, pictures: Path) -> None:
    data, source = data_of(latents), DataSpec(name="webdataset", root=str(pictures), caption_key="usual")
    captions = Capabilities(data).captions
    assert captions is not None and [captions(index) for index in range(len(data))] == READ
    assert "6 captions (encoded with the latents)" in found_in(data).line()
    # The source is opened with its captions, and is the one that was encoded.
    assert data.pictures.fingerprint == open_dataset(source).fingerprint


def test_encoding_without_captions_is_that_of_earlier_versions(
    latents: Path, pictures: Path, tmp_path: Path
) -> None:
    encode(pictures, "identity", tmp_path / "plain")
    plain, found = content(tmp_path / "plain"), content(latents)
    assert set(found) - set(plain) == {"captions.bin", "captions.npz"}
    assert {name for name in plain if plain[name] != found[name]} == {"encoding.json", "latents.json"}
    assert Capabilities(data_of(tmp_path / "plain")).captions is None


def test_damaged_captions_are_refused(latents: Path, tmp_path: Path) -> None:
    for name, value in content(latents).items():
        (tmp_path / name).write_bytes(value[:-1] + b"!" if name == "captions.bin" else value)
    with pytest.raises(UserError, match=r"captions\.bin is damaged"):
        data_of(tmp_path)


def test_run_on_latents_without_captions_is_refused(pictures: Path, tmp_path: Path) -> None:
    encode(pictures, "identity", tmp_path / "plain")
    spec = tiny(*ON_TEXT, "text.encoder=random:text", "data.name=latents", f"data.root={tmp_path / 'plain'}")
    with pytest.raises(UserError, match="also when latents are encoded"):
        trained(spec, tmp_path / "runs")


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a folder of U-ViT's features whose image 5 has no captions."""
    files = uvit_files(moments(N, logvar=True)[:, 0])
    kept = {name: value for name, value in files.items() if not name.startswith("5_")}
    return write(tmp_path_factory.mktemp("coco"), kept)


@pytest.fixture(scope="module")
def imported(coco: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("imported") / "out"
    import_data(coco, out, "--resolution", "8", "--codec", "none")
    return out


def stored_spec(folder: Path, *overrides: str) -> RunSpec:
    return tiny(*ON_TEXT, *STORED, "data.name=latents", f"data.root={folder}", *overrides)


def captions_of(spec: RunSpec) -> RunCaptions:
    found = open_captions(spec, open_dataset(spec.data), CPU)
    assert found is not None
    return found


def test_condition_is_the_stored_state_and_the_null_is_the_empty_context(imported: Path) -> None:
    spec = stored_spec(imported)
    found = captions_of(spec)
    place = np.array([3, 5, 23])
    chosen = found.chosen(place, torch.tensor([0.6, 0.9, 0.2]))
    expected = np.stack([states(3, 1), states(0, 9), states(23, 0)])
    assert chosen.mask is None and np.array_equal(chosen.features.numpy(), expected)
    assert np.array_equal(found.first(place).features[0].numpy(), states(3, 0))
    assert found.with_captions(np.arange(N)).tolist() == [n for n in range(N) if n != 5]
    null = null_text(spec, open_dataset(spec.data), CPU)
    assert null is not None and np.array_equal(null.features[0].numpy(), states(0, 9))
    line = found_in(open_dataset(spec.data)).line()
    assert "46 captions (states of" in line and "1 samples have none (first: sample 5)" in line


def test_loss_of_stored_states_has_no_strata_of_length(imported: Path) -> None:
    """Image 5 has no caption, and the others have names of captions in place of texts."""
    spec, place = stored_spec(imported), np.array([5, 5, 5, 3])
    world = World(0, 1, CPU)
    loss = HeldOutLoss(spec.eval, open_dataset(spec.data), place, captions_of(spec), world)
    assert loss.groups == {}


def test_state_that_changes_after_the_import_is_refused(coco: Path, imported: Path, tmp_path: Path) -> None:
    moved = write(tmp_path / "coco", {file.name: file.read_bytes() for file in coco.iterdir()})
    import_data(moved, tmp_path / "out", "--resolution", "8")
    assert data_of(tmp_path / "out").fingerprint == data_of(imported).fingerprint
    np.save(moved / "3_1.npy", states(8, 8))
    found = captions_of(stored_spec(tmp_path / "out"))
    with pytest.raises(UserError, match=r"3_1\.npy has other states than when it was imported"):
        found.chosen(np.array([3]), torch.tensor([0.9]))


def test_states_that_a_stopped_import_has_read_are_not_read_again(
    coco: Path, imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Image 9 is in the third part of four images, and its file is replaced after the refusal."""
    monkeypatch.setattr(captions_module, "PART", 4)
    files = {file.name: file.read_bytes() for file in coco.iterdir()}
    moved = write(tmp_path / "coco", files | {"9_1.npy": b"cut"})
    stopped = attempt(moved, tmp_path / "out", "--resolution", "8")
    assert isinstance(stopped.exception, UserError) and "9_1.npy" in str(stopped.exception)
    assert sorted(tmp_path.glob("out/*.part")) == [tmp_path / f"out/states-0000{n}.part" for n in (0, 1)]
    write(moved, files)
    read, original = [], captions_module.read_states
    monkeypatch.setattr(captions_module, "read_states", lambda path: read.append(path.name) or original(path))
    import_data(moved, tmp_path / "out", "--resolution", "8")
    assert {int(name.split("_")[0]) for name in read if name != "empty_context.npy"} == set(range(8, N))
    assert not list(tmp_path.glob("out/*.part"))
    again = {name: value for name, value in content(tmp_path / "out").items() if "json" not in name}
    assert again == {name: value for name, value in content(imported).items() if "json" not in name}


def test_import_that_stops_before_its_manifest_leaves_no_part_and_is_finished_by_the_same_command(
    coco: Path, imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        if path.name == MANIFEST:
            raise OSError(28, "No space left on device")
        write_atomic(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(encode_module, "write_atomic", full)
        stopped = attempt(coco, tmp_path / "out", "--resolution", "8")
    assert "No space left on device" in str(stopped.exception)
    assert (tmp_path / "out" / STATES).exists() and not list(tmp_path.glob("out/*.part"))
    import_data(coco, tmp_path / "out", "--resolution", "8")
    assert content(tmp_path / "out") == content(imported)


def test_ranks_divide_the_reading_of_states(
    coco: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(captions_module, "PART", 4)
    features, written = open_caption_features(coco), []
    job = SimpleNamespace(
        staged=lambda: staged_digests(features), further=lambda: {STATES: partial(states_file, features)}
    )
    for rank in (0, 1):
        (tmp_path / str(rank)).mkdir()
        _write_staged(tmp_path / str(rank), job, World(rank, 2, CPU))
        written.append({file.name for file in (tmp_path / str(rank)).iterdir()})
    assert written == [{f"states-0000{n}.part" for n in own} for own in ((0, 2, 4), (1, 3, 5))]


def test_run_trains_on_stored_states(imported: Path, tmp_path: Path) -> None:
    vae = save_vae(tmp_path / "vae")
    spec = stored_spec(imported, f"data.codec=sd-vae:{vae}", "train.steps=6", "data.held_out=0.3")
    record: Record = trained(spec, tmp_path / "runs")
    (start,) = (start for start in record.environment if "text" in start)
    assert (start["text"]["name"], start["text"]["captions"], start["text"]["one_off_flops"]) == (
        "stored",
        46,
        0,
    )
    assert record.of("eval")[-1]["metrics"]["loss:held_out"]["mean"] > 0


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["text.padding=masked"], "set text.padding=attended"),
        (["text.encoder=stored:clip"], "stored:clip, but stored features have no choice of a model"),
        (["text.length=77"], "text.length = 77, but the stored states have 7 tokens"),
        (["text.pooled=true"], "text.pooled = True, but text.encoder = stored runs no network"),
    ],
)
def test_setting_that_stored_features_cannot_have_is_one_sentence(
    imported: Path, tmp_path: Path, overrides: list[str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        trained(stored_spec(imported, *overrides), tmp_path)


def test_prompts_and_scores_of_texts_need_an_encoder(imported: Path) -> None:
    spec = stored_spec(imported)
    with pytest.raises(UserError, match="cannot be encoded; leave out --prompt"):
        captions_of(spec).encoder.encode(["a cat"])
    with pytest.raises(UserError, match="reads the texts of captions"):
        stored_spec(imported, 'eval.metrics=["fd:local", "clip_score:open_clip:ViT-B-32.openai"]')


def test_data_without_stored_features_are_refused() -> None:
    spec = load_spec("prompts", [*STORED[:3], "text.length=77"])
    with pytest.raises(UserError, match="needs stored features of captions"):
        open_captions(spec, open_dataset(spec.data), CPU)


def test_images_in_another_order_than_their_numbers_are_refused(tmp_path: Path) -> None:
    """Sorted by name, 10.png is the third picture, and belongs to latent 10.npy."""
    root = write(tmp_path / "coco", uvit_files(moments(N, logvar=True)[:, 0]))
    unpadded = {f"{n}.png": png(pixels()[n % 8]) for n in range(N)}
    result = attempt(
        root, tmp_path / "o", "--images", str(write(tmp_path / "a", unpadded)), "--resolution", "32"
    )
    assert isinstance(result.exception, UserError)
    assert "image 12 in the order of names is 2.png, after 19.png" in str(result.exception)
    names = {
        "numbers from 1": lambda n: f"{n + 1:06d}.png",
        "names of COCO": lambda n: f"COCO_train2014_{9 + 16 * n:012d}.png",
        "identities of COCO": lambda n: f"{9 + 16 * n:012d}.png",
    }
    for kind, name in names.items():
        padded = {name(n): content for n, content in enumerate(unpadded.values())}
        images = write(tmp_path / kind, padded)
        import_data(root, tmp_path / f"o {kind}", "--images", str(images), "--resolution", "32")
    unpadded = {f"COCO_{n}.png": content for n, content in enumerate(unpadded.values())}
    images = write(tmp_path / "c", unpadded)
    result = attempt(root, tmp_path / "o", "--images", str(images), "--resolution", "32")
    assert "COCO_2.png, after COCO_19.png" in str(result.exception)
