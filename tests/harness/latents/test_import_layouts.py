"""Latents of LightningDiT, MAR and U-ViT are imported as they are, and damaged ones are refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.config.data_spec import DataSpec
from harness.data.disk.caption_features import open_caption_features
from harness.data.found import found_in
from harness.data.open import open_dataset
from harness.errors import UserError
from harness.latents.codec import open_codec
from tests.harness.data.containers import mds_of, tar_of
from tests.harness.latents.vae import save_vae
from tests.support.latent_layouts import (
    LABELS,
    attempt,
    import_data,
    moments,
    npy,
    npz,
    safetensors_files,
    states,
    stored,
    uvit_files,
    write,
)
from tests.support.mutations import check_mutated_imports, check_mutated_reads

SIDE = ("--resolution", "32")
DRAWS = np.random.default_rng(2).normal((1.0, -2.0, 0.5), (3.0, 0.4, 1.0), (len(LABELS), 2, 5, 5, 3))
DRAWS = np.ascontiguousarray(DRAWS.transpose(0, 1, 4, 2, 3)).astype(np.float32)
"""Draws (n, 2, 3, 5, 5) whose channels have other means and spreads."""
N = 24


def opened(root: Path, **fields: object):
    return open_dataset(DataSpec(name="latents", root=str(root), **fields))


def drawn(data, noise: Tensor, flipped: Tensor | None = None) -> Tensor:
    return data.draws(np.arange(len(noise)), flipped, noise)


def mar_files(records: np.ndarray) -> dict[str, bytes]:
    """Return the files of MAR's main_cache.py: `class/name.JPEG.npz`."""
    return {
        f"n{number % 3:08d}/image_{number}.JPEG.npz": npz(moments=record[0], moments_flip=record[1])
        for number, record in enumerate(records)
    }


# LightningDiT


def test_safetensors_are_the_sources_bit_for_bit_with_mirrored_copies(tmp_path: Path) -> None:
    root = safetensors_files(tmp_path / "source", DRAWS)
    row = import_data(root, tmp_path / "out", *SIDE, "--scale", "0.4", "--rows", "20")
    assert (row["holds"], row["copies"], row["samples"], row["shape"]) == ("sample", 2, 48, [3, 5, 5])
    assert np.array_equal(stored(tmp_path / "out")[:, :, 0], DRAWS)
    data = opened(tmp_path / "out", flip=True)
    assert tuple(data.label(i) for i in range(48)) == LABELS
    flipped = torch.tensor([True, False, True])
    expected = torch.stack([torch.from_numpy(DRAWS[i, int(flip)]) for i, flip in enumerate(flipped)]) * 0.4
    # A draw has no posterior left to draw from.
    torch.testing.assert_close(drawn(data, torch.randn(3, 3, 5, 5), flipped), expected)


def test_statistics_normalise_as_in_lightningdit(tmp_path: Path) -> None:
    """ImgLatentDataset: (feature - mean) / std, with statistics (1, C, 1, 1)."""
    root = safetensors_files(tmp_path / "source", DRAWS)
    mean, std = (
        torch.from_numpy(part(DRAWS, axis=(0, 1, 3, 4), keepdims=True)[0]) for part in (np.mean, np.std)
    )
    torch.save({"mean": mean, "std": std}, root / "latents_stats.pt")
    import_data(root, tmp_path / "out", *SIDE)
    expected = (torch.from_numpy(DRAWS[:, 0]) - mean) / std
    torch.testing.assert_close(drawn(opened(tmp_path / "out"), torch.zeros(48, 3, 5, 5)), expected)
    (root / "latents_stats.pt").rename(tmp_path / "elsewhere.pt")
    result = attempt(root, tmp_path / "none", *SIDE)
    assert isinstance(result.exception, UserError) and "scale of its latents is not known" in str(
        result.exception
    )
    row = import_data(root, tmp_path / "given", *SIDE, "--stats", str(tmp_path / "elsewhere.pt"))
    assert row["codec"]["shift"] == pytest.approx(mean.flatten().tolist())


def test_measured_statistics_are_those_of_the_latents(tmp_path: Path) -> None:
    root = safetensors_files(tmp_path / "source", DRAWS)
    row = import_data(root, tmp_path / "out", *SIDE, "--stats", "measure")
    assert row["codec"]["shift"] == pytest.approx(DRAWS.mean((0, 1, 3, 4)), rel=1e-5)
    assert row["codec"]["scale"] == pytest.approx(1 / DRAWS.std((0, 1, 3, 4)), rel=1e-5)


def test_bfloat16_widens_exactly(tmp_path: Path) -> None:
    halves = torch.from_numpy(DRAWS[:, 0]).bfloat16()
    save_file({"latents": halves, "labels": torch.tensor(LABELS)}, tmp_path / "a.safetensors")
    row = import_data(tmp_path / "a.safetensors", tmp_path / "out", *SIDE, "--scale", "0.4")
    assert row["dtype"] == "float32" and row["copies"] == 1
    assert torch.equal(torch.from_numpy(stored(tmp_path / "out")[:, 0, 0]).bfloat16(), halves)


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_linked_safetensors_give_the_same_latents_from_where_they_are(
    tmp_path: Path, kind: torch.dtype
) -> None:
    root = safetensors_files(tmp_path / "source", DRAWS, kind=kind)
    copied = import_data(root, tmp_path / "copied", *SIDE, "--scale", "0.4")
    linked = import_data(root, tmp_path / "linked", *SIDE, "--scale", "0.4", "--link", "--rows", "20")
    assert linked["linked"] and linked["bytes"] < copied["bytes"] / 2
    one, other = opened(tmp_path / "copied"), opened(tmp_path / "linked")
    flipped, noise = torch.arange(48) % 3 == 0, torch.zeros(48, 3, 5, 5)
    assert torch.equal(drawn(one, noise, flipped), drawn(other, noise, flipped))


def test_codec_that_is_named_later_undoes_the_normalisation_of_the_import(tmp_path: Path) -> None:
    """U-ViT's and MAR's scales are not that of the SD-VAE's own configuration."""
    root = safetensors_files(tmp_path / "source", DRAWS[:, :, [0, 1, 2, 0]])
    import_data(root, tmp_path / "out", "--resolution", "10", "--scale", "0.4", "--shift", "0.1")
    vae = save_vae(tmp_path / "vae")
    data = opened(tmp_path / "out", codec="sd-vae", codec_weights=str(vae))
    own = open_codec("sd-vae", str(vae), torch.device("cpu"))
    z = torch.from_numpy(DRAWS[:4, 0][:, [0, 1, 2, 0]])
    decoded = data.codec(torch.device("cpu")).decode((z - 0.1) * 0.4)
    torch.testing.assert_close(decoded, own.decode(own.affine.normalised(z)), atol=1e-5, rtol=1e-4)


def test_folder_is_either_copied_or_linked(tmp_path: Path) -> None:
    root = safetensors_files(tmp_path / "source", DRAWS)
    import_data(root, tmp_path / "out", *SIDE, "--scale", "0.4")
    before = stored(tmp_path / "out")
    result = attempt(root, tmp_path / "out", *SIDE, "--scale", "0.4", "--link")
    assert isinstance(result.exception, UserError)
    assert np.array_equal(stored(tmp_path / "out"), before)
    import_data(root, tmp_path / "linked", *SIDE, "--scale", "0.4", "--link")
    result = attempt(root, tmp_path / "linked", *SIDE, "--scale", "0.4")
    assert isinstance(result.exception, UserError)


@pytest.mark.parametrize("options", [("--stats", "measure", "--shift", "0.1"), ("--shift", "0.1")])
def test_shift_without_its_scale_is_refused(tmp_path: Path, options: tuple[str, ...]) -> None:
    root = safetensors_files(tmp_path / "source", DRAWS)
    result = attempt(root, tmp_path / "out", *SIDE, *options)
    assert isinstance(result.exception, UserError) and "--shift" in str(result.exception)


def test_copies_that_are_not_mirrored_are_stated(tmp_path: Path) -> None:
    """Some writers fill `latents_flip` with the latents themselves."""
    same = np.repeat(DRAWS[:, :1], 2, axis=1)
    result = attempt(safetensors_files(tmp_path / "s", same), tmp_path / "out", *SIDE, "--scale", "0.4")
    assert result.exit_code == 0 and "the mirrored copies equal the originals" in result.output


def tensors(**changed: Tensor | None) -> dict[str, Tensor]:
    latents = torch.from_numpy(DRAWS[:6, 0].copy())
    found = {"latents": latents, "latents_flip": latents.clone(), "labels": torch.arange(6)} | changed
    return {name: value for name, value in found.items() if value is not None}


FAULTS = {
    "no_latents": (tensors(latents=None), "has no 'latents'; it has labels, latents_flip"),
    "no_labels": (tensors(labels=None), "has no 'labels'; add them, or import with --no-labels"),
    "few_labels": (tensors(labels=torch.arange(5)), r"'labels' has shape \(5,\), expected \(6,\)"),
    "labels_out_of_range": (tensors(labels=torch.arange(6) + 10**6), "out of range"),
    "flip_of_another_shape": (tensors(latents_flip=torch.zeros(6, 3, 5, 4)), "'latents_flip' is F32"),
    "flat": (tensors(latents=torch.zeros(6, 75)), r"'latents' has shape \(6, 75\)"),
    "double": (tensors(latents=torch.zeros(6, 3, 5, 5).double(), latents_flip=None), "'latents' is F64"),
    "nan": (tensors(latents=torch.full((6, 3, 5, 5), torch.nan)), "not finite"),
    "one_file_without_flip": (tensors(latents_flip=None), "without mirrored copies, but"),
    "another_shape": (tensors(latents=torch.ones(6, 4, 5, 5), latents_flip=torch.ones(6, 4, 5, 5)), "4x5x5"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_broken_safetensors_are_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    content, message = FAULTS[name]
    root = tmp_path / "source"
    if name in ("one_file_without_flip", "another_shape"):
        safetensors_files(root, DRAWS)
    root.mkdir(exist_ok=True)
    save_file(content, root / "z.safetensors")
    result = attempt(root, tmp_path / "out", *SIDE, "--scale", "0.4")
    assert isinstance(result.exception, UserError), result.output
    with pytest.raises(UserError, match=message):
        raise result.exception
    assert not (tmp_path / "out").exists()


class Payload:
    """An object that writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.file,))


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_pickled_statistics_are_refused_and_not_executed(tmp_path: Path, how: str) -> None:
    root, mark = safetensors_files(tmp_path / "source", DRAWS), tmp_path / "executed"
    content = {"mean": torch.zeros(3), "std": Payload(mark)}
    if how == "torch":
        torch.save(content, root / "latents_stats.pt")
    else:
        (root / "latents_stats.pt").write_bytes(pickle.dumps(content))
    result = attempt(root, tmp_path / "out", *SIDE)
    assert isinstance(result.exception, UserError), result.output
    assert "never executed" in str(result.exception) or "can be read" in str(result.exception)
    assert not mark.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"mean": torch.zeros(3)}, "no 'mean' and 'std'"),
        ({"mean": torch.zeros(4), "std": torch.ones(4)}, "have 4 channels, but the latents have 3"),
        ({"mean": torch.zeros(3), "std": torch.zeros(3)}, "not positive"),
        ({"mean": torch.zeros(3), "std": torch.full((3,), torch.nan)}, "not finite"),
        ({"mean": torch.zeros(3), "std": torch.ones(3) * 9}, "standard deviation of channel 0 is 0.3"),
        ({"mean": torch.ones(3) * 9, "std": torch.tensor([3.0, 0.4, 1.0])}, "mean of channel 0 is -2.6"),
        ([torch.zeros(3)], "no 'mean' and 'std'"),
    ],
    ids=["half", "channels", "zero", "nan", "spread", "mean", "list"],
)
def test_statistics_of_other_latents_are_refused(tmp_path: Path, content: object, message: str) -> None:
    root = safetensors_files(tmp_path / "source", DRAWS)
    torch.save(content, root / "latents_stats.pt")
    result = attempt(root, tmp_path / "out", *SIDE)
    assert isinstance(result.exception, UserError), result.output
    with pytest.raises(UserError, match=message):
        raise result.exception


# MAR


def test_mars_cache_is_the_sources_bit_for_bit(tmp_path: Path) -> None:
    """engine_mar.py: DiagonalGaussianDistribution(moments).sample() * 0.2325."""
    records = moments(N, channels=16, side=2, logvar=True, copies=2)
    root = write(tmp_path / "cached", mar_files(records))
    row = import_data(root, tmp_path / "out", *SIDE, "--rows", "10")
    assert (row["holds"], row["copies"], row["classes"], row["codec"]["scale"]) == ("logvar", 2, 3, 0.2325)
    order = sorted(range(N), key=lambda number: f"n{number % 3:08d}/image_{number}.JPEG.npz")
    assert np.array_equal(stored(tmp_path / "out").reshape(N, 2, 32, 2, 2), records[order])
    data = opened(tmp_path / "out", flip=True)
    assert [name for name, _ in found_in(data).classes] == ["n00000000", "n00000001", "n00000002"]
    noise = torch.randn(N, 16, 2, 2)
    mean, logvar = torch.from_numpy(records[order][:, 1]).chunk(2, dim=1)
    expected = (mean + torch.exp(0.5 * logvar.clamp(-30, 20)) * noise) * 0.2325
    torch.testing.assert_close(drawn(data, noise, torch.ones(N, dtype=torch.bool)), expected)


def test_compressed_npz_gives_the_same_latents(tmp_path: Path) -> None:
    records = moments(N, channels=16, side=2, logvar=True, copies=2)
    plain = import_data(write(tmp_path / "a", mar_files(records)), tmp_path / "1", *SIDE)
    files = {
        name: npz(compressed=True, **dict(np.load(tmp_path / "a" / name))) for name in mar_files(records)
    }
    import_data(write(tmp_path / "b", files), tmp_path / "2", *SIDE)
    assert np.array_equal(stored(tmp_path / "1"), stored(tmp_path / "2")) and plain["samples"] == N


MAR = moments(N, channels=16, side=2, logvar=True, copies=2)
LAST = "n00000002/image_23.JPEG.npz"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npz(moments=MAR[0, 0]), "has 1 of the arrays"),
        (npz(moments_flip=MAR[0, 0]), "has no array 'moments'"),
        (npz(moments=MAR[0, 0], moments_flip=MAR[0, 0].astype("f2")), "is 32x2x2 float16, but"),
        (npz(moments=MAR[0, 0][None], moments_flip=MAR[0, 0][:, :1]), "is 32x1x2 float32, but"),
        (npz(moments=MAR[0, 0] * np.float32(np.nan), moments_flip=MAR[0, 0]), "not finite"),
        (npz(moments=np.array([None]), moments_flip=MAR[0, 0]), "pickled objects, which are never executed"),
        (npz(moments=MAR[0, 0], moments_flip=MAR[0, 0])[:-30], "not an .npz file"),
        (npz(moments=np.zeros((32, 500, 500), "f4"), moments_flip=MAR[0, 0], compressed=True), "at most"),
        (b"", "not an .npz file"),
    ],
    ids=["no_flip", "only_flip", "type", "shape", "nan", "pickled", "cut", "expanding", "empty"],
)  # fmt: skip
def test_broken_npz_is_refused_in_one_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    root = write(tmp_path / "cached", mar_files(MAR) | {LAST: content})
    result = attempt(root, tmp_path / "out", *SIDE)
    assert isinstance(result.exception, UserError), result.output
    with pytest.raises(UserError, match=message):
        raise result.exception
    assert not (tmp_path / "out").exists()


def test_standard_deviations_in_place_of_log_variances_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "cached", mar_files(moments(N, channels=16, side=2, copies=2)))
    result = attempt(root, tmp_path / "out", *SIDE)
    assert isinstance(result.exception, UserError) and "add --holds std" in str(result.exception)
    assert import_data(root, tmp_path / "out", *SIDE, "--holds", "std")["holds"] == "std"


# U-ViT


@pytest.mark.parametrize("split", ["", "train"])
def test_uvits_moments_are_the_sources_bit_for_bit(tmp_path: Path, split: str) -> None:
    records = moments(N, logvar=True)[:, 0]
    write(tmp_path / "coco" / split, uvit_files(records))
    result = attempt(tmp_path / "coco", tmp_path / "text", *SIDE)
    assert "captions: 48, which stay in" in result.output and "scale 0.2301" in result.output
    row = import_data(tmp_path / "coco", tmp_path / "out", *SIDE)
    assert (row["holds"], row["classes"], row["samples"]) == ("logvar", 1, N)
    assert np.array_equal(stored(tmp_path / "out").reshape(N, 8, 4, 4), records)


def test_states_of_captions_are_those_of_the_files(tmp_path: Path) -> None:
    features = open_caption_features(write(tmp_path, uvit_files(moments(12, logvar=True)[:, 0])))
    assert features.captions == (2,) * 12
    assert np.array_equal(features.states(11, 1), states(11, 1))
    assert np.array_equal(features.empty(), states(0, 9))
    with pytest.raises(IndexError, match="has 2 captions"):
        features.states(0, 2)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"3.npy": None}, "has no 3.npy, but 23 latents"),
        ({"99_0.npy": b""}, "captions of image 99, but no 99.npy"),
        ({"5_0.npy": None}, "captions of image 5 are not numbered from 0"),
        ({"5.npy": npy(np.array([None]))}, "pickled objects, which are never executed"),
    ],
)
def test_gaps_and_pickles_in_uvits_folder_are_refused(
    tmp_path: Path, changed: dict[str, bytes | None], message: str
) -> None:
    files = uvit_files(moments(N, logvar=True)[:, 0]) | changed
    root = write(tmp_path / "coco", {name: content for name, content in files.items() if content is not None})
    result = attempt(root, tmp_path / "out", *SIDE)
    assert isinstance(result.exception, UserError), result.output
    with pytest.raises(UserError, match=message):
        raise result.exception


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(np.zeros((2, 7, 6), "f4")), r"2x7x6 float32, expected states \(tokens, width\)"),
        (npy(np.full((7, 6), np.inf)), "not finite"),
        (npy(np.array([None])), "pickled objects"),
        (npy(states(0, 0))[:50], "cannot be read|can be read"),
    ],
)
def test_broken_states_are_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    files = uvit_files(moments(2, logvar=True)[:, 0]) | {"1_0.npy": content}
    features = open_caption_features(write(tmp_path, files))
    with pytest.raises(UserError, match=rf"1_0\.npy.*({message})"):
        features.states(1, 0)


# Tar files


def tar_members(records: np.ndarray) -> list[tuple[str, bytes]]:
    """Return KEY.cls, KEY.npy and KEY.txt of each record."""
    members = []
    for number, (record, label) in enumerate(zip(records, LABELS, strict=False)):
        parts = {"cls": str(label).encode(), "npy": npy(record), "txt": b"a cat"}
        members += [(f"{number:05d}.{ending}", content) for ending, content in parts.items()]
    return members


def test_latents_of_tar_files_are_the_sources_bit_for_bit(tmp_path: Path) -> None:
    records = moments(logvar=True)[:, 0]
    for number in range(2):
        tar_of(tmp_path / "wds" / f"train-{number}.tar", tar_members(records)[72 * number : 72 * number + 72])
    result = attempt(tmp_path / "wds", tmp_path / "none", *SIDE, "--scale", "0.2")
    assert isinstance(result.exception, UserError) and "add --holds logvar" in str(result.exception)
    row = import_data(tmp_path / "wds", tmp_path / "out", *SIDE, "--scale", "0.2", "--holds", "logvar")
    assert (row["label_source"], row["imported"]["layout"]) == ("member .cls", "webdataset")
    assert np.array_equal(stored(tmp_path / "out").reshape(48, 8, 4, 4), records)
    data = opened(tmp_path / "out")
    assert tuple(data.label(i) for i in range(48)) == LABELS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(np.array([None])), "pickled objects, which are never executed"),
        (npy(moments(side=5)[0, 0]), "8x5x5 float32, but"),
        (npy(np.zeros((8, 200, 200), "f4")), "more than the other latents"),
        (npy(moments()[0, 0])[:-7], "has 505 bytes of data"),
    ],
    ids=["pickled", "shape", "size", "cut"],
)
def test_broken_latents_in_tar_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    members = [*tar_members(moments()[:, 0])[:-2], ("00047.npy", content)]
    result = attempt(tar_of(tmp_path / "a.tar", members), tmp_path / "out", *SIDE, "--scale", "0.2")
    assert isinstance(result.exception, UserError), result.output
    with pytest.raises(UserError, match=message):
        raise result.exception
    assert not (tmp_path / "out").exists()


# MDS


def mds_latents(root: Path, *sides: int) -> Path:
    """Write columns as micro_diffusion's precompute.py does: float16 latents of images of several sides."""
    draws = np.random.default_rng(4).normal(0, 5, (N, 4, 8, 8)).astype(np.float16)
    rows = [
        {"caption": f"a {n}", "caption_latents": b"xy"}
        | {f"latents_{side}": draws[n, :, : side // 8, : side // 8].tobytes() for side in sides}
        for n in range(N)
    ]
    columns = {"caption": "str", "caption_latents": "bytes"} | {f"latents_{side}": "bytes" for side in sides}
    return mds_of(root, columns, rows)


def test_latents_in_mds_shards_are_the_sources_bit_for_bit(tmp_path: Path) -> None:
    root = mds_latents(tmp_path / "mds", 32, 64)
    draws = np.random.default_rng(4).normal(0, 5, (N, 4, 8, 8)).astype(np.float16)
    for side in (32, 64):
        out = tmp_path / f"out{side}"
        row = import_data(root, out, "--resolution", str(side), "--scale", "0.2")
        assert (row["holds"], row["dtype"], row["shape"]) == ("sample", "float16", [4, side // 8, side // 8])
        assert np.array_equal(stored(out)[:, 0, 0], draws[:, :, : side // 8, : side // 8])
    result = attempt(root, tmp_path / "none", "--scale", "0.2")
    assert "latents_32, latents_64; choose with --resolution" in str(result.exception)


def test_broken_latents_in_mds_shards_are_refused(tmp_path: Path) -> None:
    columns, good = {"latents_32": "bytes"}, np.ones((4, 4, 4), np.float16).tobytes()
    for number, (rows, message) in enumerate(
        (
            ([good, good[:-2]], "but the first sample has 128; all latents need one shape"),
            ([good[:-2]], "no float16 latents of 4x4 places"),
        )
    ):
        root = mds_of(tmp_path / str(number), columns, [{"latents_32": row} for row in rows])
        result = attempt(root, tmp_path / "out", *SIDE, "--scale", "1", "--no-labels", "--any-scale")
        assert isinstance(result.exception, UserError) and message in str(result.exception), result.exception


# All


def test_unknown_layout_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear")
    result = attempt(tmp_path, tmp_path / "out", *SIDE)
    assert isinstance(result.exception, UserError) and "no known layout; expected one of: repa" in str(
        result.exception
    )
    result = attempt(tmp_path / "nowhere", tmp_path / "out", *SIDE)
    assert isinstance(result.exception, UserError) and "no such file or folder" in str(result.exception)


@pytest.mark.parametrize("layout", ["auto", "repa", "lightningdit", "mar", "uvit", "webdataset", "mds"])
@pytest.mark.parametrize("source", ["empty", "junk", "file", "stray.zip", "stray.tar", "stray.safetensors"])
def test_source_of_another_kind_is_refused_under_every_layout(
    tmp_path: Path, layout: str, source: str
) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "junk", {"a.npz": b"x", "b/c.npy": b"", "0.npy": b"y", "index.json": b"{}"})
    for name in ("file", "stray.zip", "stray.tar", "stray.safetensors"):
        (tmp_path / name).write_bytes(b"no latents at all")
    result = attempt(tmp_path / source, tmp_path / "out", *SIDE, "--scale", "1", "--layout", layout)
    assert isinstance(result.exception, UserError), result.output
    assert "\n" not in str(result.exception) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [("--scale", "0"), ("--scale", "nan"), ("--stored-scale", "0"), ("--shift", "inf")],
    ids=" ".join,
)
def test_numbers_that_cannot_normalise_are_refused(tmp_path: Path, options: tuple[str, str]) -> None:
    root = write(tmp_path / "cached", mar_files(MAR))
    result = attempt(root, tmp_path / "out", *SIDE, *options)
    assert isinstance(result.exception, UserError) and f"{options[0]} {options[1]}" in str(result.exception)


def test_json_states_what_was_found(tmp_path: Path) -> None:
    root = write(tmp_path / "cached", mar_files(MAR) | {"n00000001/._x": b"", "n00000001/notes.txt": b""})
    row = import_data(root, tmp_path / "out", *SIDE)
    assert row["label_source"] == "class folders" and row["imported"]["layout"] == "mar"
    assert {entry["first"] for entry in row["skipped"]} == {"n00000001/._x", "n00000001/notes.txt"}
    manifest = json.loads((tmp_path / "out" / "latents.json").read_text())
    assert manifest["class_names"] == ["n00000000", "n00000001", "n00000002"]


SOURCES = {
    "lightningdit": lambda root: safetensors_files(root, DRAWS, rows=24),
    "mar": lambda root: write(root, mar_files(MAR)),
    "webdataset": lambda root: tar_of(root / "a.tar", tar_members(moments(N)[:, 0])).parent,
    "uvit": lambda root: write(root, uvit_files(moments(N, logvar=True)[:, 0], captions=1)),
    "mds": lambda root: mds_latents(root, 32),
}


@pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SOURCES)
def test_mutated_latents_are_imported_or_refused(tmp_path: Path, name: str, count: int) -> None:
    """Any other exception than `UserError` fails the test, and so does a half-written file."""
    options = ("--layout", name, "--scale", "0.4" if name == "lightningdit" else "0.2")
    check_mutated_imports(SOURCES[name](tmp_path / "source"), tmp_path / "out", count, *SIDE, *options)


@pytest.mark.slow
def test_mutated_statistics_are_read_or_refused(tmp_path: Path) -> None:
    from harness.latents.layouts.lightningdit import read_statistics

    file = tmp_path / "latents_stats.pt"
    torch.save({"mean": torch.zeros(3), "std": torch.ones(3)}, file)
    check_mutated_reads([file], 1000, lambda: read_statistics(file))
