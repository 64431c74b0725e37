"""Images in tar files, MDS shards, Arrow files and zip files are read in place, as those of a folder are."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import tracemalloc
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from harness.config.data_spec import DataSpec
from harness.data.disk import parquet
from harness.data.disk.kinds import image_kind
from harness.data.disk.packed import read_span
from harness.data.disk.zipped import read_member
from harness.data.found import found_in
from harness.data.open import images
from harness.errors import UserError
from harness.evaluation.samples.sources import open_source
from tests.harness.data.containers import Members, mds_of, mds_rows, samples, saved, tar_of
from tests.harness.data.pictures import (
    LABELS,
    all_pixels,
    folder_of,
    opened,
    pixels,
    png,
    table_of,
    with_classes,
)
from tests.support.encoded import encode
from tests.support.forked import in_child
from tests.support.latent_layouts import write
from tests.support.mutations import check_mutated_reads

PIXELS = pixels()
ENCODED = [png(image) for image in PIXELS]
NAMES = [f"{number:05d}/img{number:08d}.png" for number in range(8)]
EDM = {
    **dict(zip(NAMES, ENCODED, strict=True)),
    "dataset.json": json.dumps(
        {"labels": [list(row) for row in zip(NAMES, LABELS.tolist(), strict=True)]}
    ).encode(),
}
WRITERS = {
    "webdataset": lambda root: tar_of(root / "a-000.tar", samples(PIXELS)).parent,
    "mds": lambda root: mds_of(root, {"image": "png", "label": "int"}, mds_rows(PIXELS)),
    "arrow": lambda root: saved(root, table_of(ENCODED, LABELS)),
    "zip": lambda root: write(root.with_suffix(".zip"), EDM),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_container_gives_the_images_and_labels_of_a_folder(tmp_path: Path, kind: str) -> None:
    root = WRITERS[kind](tmp_path / "source")
    data = opened(kind, root)
    assert np.array_equal(all_pixels(data), PIXELS)
    assert images(data, np.arange(8))[1].tolist() == LABELS.tolist()
    folder = opened("folder", folder_of(tmp_path / "folder", PIXELS))
    assert data.fingerprint == folder.fingerprint
    assert [data.key(i) for i in range(8)] == [folder.key(i) for i in range(8)]
    assert image_kind(root) == kind


@pytest.mark.parametrize("kind", WRITERS)
def test_container_is_encoded_by_its_path_alone(tmp_path: Path, kind: str) -> None:
    encode(WRITERS[kind](tmp_path / "source"), "identity", tmp_path / "one")
    encode(folder_of(tmp_path / "folder", PIXELS), "identity", tmp_path / "other")
    shard = "shard-00000.npy"
    assert (tmp_path / "one" / shard).read_bytes() == (tmp_path / "other" / shard).read_bytes()


@pytest.mark.parametrize("kind", WRITERS)
def test_container_is_evaluated_by_its_path_alone(tmp_path: Path, kind: str) -> None:
    source = open_source(str(WRITERS[kind](tmp_path / "source")), "image", DataSpec())
    folder = open_source(str(folder_of(tmp_path / "folder", PIXELS)), "image", DataSpec())
    assert (source.fingerprint, source.count) == (folder.fingerprint, folder.count)


@pytest.mark.parametrize("kind", WRITERS)
def test_second_start_reads_no_image(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = WRITERS[kind](tmp_path / "source")
    monkeypatch.setattr("harness.files.stamps.TICK_NS", 0)
    first = opened(kind, root)
    monkeypatch.setattr("harness.data.disk.survey.decode", lambda _, where: pytest.fail(where))
    monkeypatch.setattr("tarfile.open", lambda *_, **__: pytest.fail("the tar file is indexed again"))
    second = opened(kind, root)
    assert second.fingerprint == first.fingerprint and found_in(second) == found_in(first)


def refused(kind: str, root: Path, **fields: Any) -> str:
    with pytest.raises(UserError) as error:
        opened(kind, root, **fields)
    assert "\n" not in str(error.value)
    return str(error.value)


class Payload:
    """An object that writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.file,))


# Tar files


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_files_are_read_in_every_format_with_long_names(tmp_path: Path, form: int) -> None:
    folder = "f" * 90 if form == tarfile.USTAR_FORMAT else "f" * 300
    members = [(f"{folder}/{name}", content) for name, content in samples(PIXELS)]
    assert np.array_equal(all_pixels(opened("webdataset", tar_of(tmp_path / "a.tar", members, form))), PIXELS)


def test_tar_files_of_a_set_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    members = samples(PIXELS)
    for number in range(4):
        tar_of(tmp_path / f"cc-train-{number:04d}.tar", members[4 * number : 4 * number + 4])
    tar_of(tmp_path / "cc-validation-0000.tar", members[:4])
    data = opened("webdataset", tmp_path)
    assert np.array_equal(all_pixels(data), PIXELS)
    assert found_in(data).line() == (
        "8 samples, 3 classes (label source: member .cls); 8x8 pixels; "
        "skipped outside of the split train: 1 (cc-validation-0000.tar)"
    ).replace("3 classes", "3 classes: 0 3, 1 2, 2 3")


@pytest.mark.parametrize(
    ("extra", "fields", "source", "classes"),
    [
        (
            {"cls": ["cat", "dog", "cat", "dog", "cat", "dog", "cat", "dog"]},
            {},
            "member .cls",
            ("cat", "dog"),
        ),
        (
            {"json": [json.dumps({"width": 8, "label": n % 2}) for n in range(8)]},
            {},
            "field 'label'",
            ("0", "1"),
        ),
        ({"json": [json.dumps({"width": 8, "id": n}) for n in range(8)]}, {}, "none: no .cls", ()),
        ({"txt": [f"caption {n}" for n in range(8)]}, {}, "none: no .cls", ()),
        ({"cls": "01230123"}, {"label_key": "none"}, "none: data.label_key = none", ()),
        (
            {"kind.txt": list("abababab"), "cls": "01230123"},
            {"label_key": "kind.txt"},
            ".kind.txt",
            ("a", "b"),
        ),
    ],
    ids=["texts", "json", "json_without_label", "captions", "none", "named"],
)
def test_labels_of_tar_files_follow_the_usual_rules(
    tmp_path: Path,
    extra: dict[str, Sequence[str]],
    fields: dict[str, str],
    source: str,
    classes: tuple[str, ...],
) -> None:
    members = []
    for number, content in enumerate(ENCODED):
        members += [(f"{number}.{ending}", values[number].encode()) for ending, values in extra.items()]
        members.append((f"{number}.jpg", content))
    found = found_in(opened("webdataset", tar_of(tmp_path / "a.tar", members), **fields))
    assert source in found.label_source and tuple(name for name, _ in found.classes) == classes


def test_hidden_and_missing_labels_of_tar_files_are_named(tmp_path: Path) -> None:
    hidden = opened("webdataset", tar_of(tmp_path / "a.tar", samples(PIXELS, [-1] * 8)))
    assert "8 of 8 labels are hidden" in hidden.label_problem
    missing = [member for member in samples(PIXELS) if member[0] != "train/00005.cls"]
    message = refused("webdataset", tar_of(tmp_path / "b.tar", missing))
    assert "train/00005.cls is missing, and other samples have it" in message


def test_samples_without_image_are_stated(tmp_path: Path) -> None:
    members = [*samples(PIXELS), ("lost.cls", b"1"), ("README", b"no ending")]
    found = found_in(opened("webdataset", tar_of(tmp_path / "a.tar", members)))
    assert found.samples == 8
    assert [(skip.reason, skip.files) for skip in found.skipped] == [
        ("other members", 1),
        ("samples without image", 1),
    ]


MEMBERS = samples(PIXELS)
TAR_FAULTS: dict[str, tuple[Members, str]] = {
    "pickled": ([*MEMBERS, ("train/00007.pyd", b"x")], r"pickled objects \(.pyd\), which are never executed"),
    "outside": ([*MEMBERS, ("../x.png", b"x")], "'../x.png', which is outside of the archive"),
    "absolute": ([*MEMBERS, ("/x.png", b"x")], "'/x.png', which is outside of the archive"),
    "twice": ([*MEMBERS, MEMBERS[0]], "holds the key 'train/00000' twice"),
    "two_images": ([*MEMBERS, ("train/00007.jpg", b"x")], "images png, jpg; choose one with data.image_key"),
    "gif": ([("a.gif", b"x")], ".gif images, which are not supported"),
    "no_image": ([("a.txt", b"x")], "holds no images, but txt"),
    "json": ([("a.json", b"{"), ("a.png", ENCODED[0])], "a.json is not JSON"),
    "label": (samples(PIXELS, [10**6] * 8), "out of range"),
}
BYTE_FAULTS = {
    "cut": (lambda content: content[: 512 * 20 + 100], "cannot read|can be read|cut short|damaged"),
    "middle": (lambda content: content[: 512 * 8] + b"\xff" * 512 + content[512 * 9 :], "damaged after byte"),
    "gzip": (lambda content: b"\x1f\x8b" + content, "decompress it if it is compressed"),
    "empty": (lambda _: b"", "not a tar file that can be read"),
}


@pytest.mark.parametrize("name", TAR_FAULTS)
def test_tar_file_with_unusable_members_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    members, message = TAR_FAULTS[name]
    with pytest.raises(UserError, match=message):
        opened("webdataset", tar_of(tmp_path / "a.tar", members))


@pytest.mark.parametrize("name", BYTE_FAULTS)
def test_damaged_tar_file_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    change, message = BYTE_FAULTS[name]
    file = tar_of(tmp_path / "a.tar", MEMBERS)
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(UserError, match=message):
        opened("webdataset", file)


def test_links_in_tar_files_are_never_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(ENCODED[0])
    file = tar_of(tmp_path / "a.tar", samples(PIXELS))
    with tarfile.open(file, "a") as archive:
        link = tarfile.TarInfo("train/00008.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(link)
    data = opened("webdataset", file)
    assert len(data) == 8 and [skip.reason for skip in data.skipped] == ["other members"]


def test_header_that_leads_back_is_refused(tmp_path: Path) -> None:
    """A negative size in a pax header would be read forever."""
    file = tmp_path / "a.tar"
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a.png")
        info.pax_headers = {"size": "-2048"}
        archive.addfile(info)
    with pytest.raises(UserError, match="not a tar file that can be read"):
        opened("webdataset", file)


# MDS shards


@pytest.mark.parametrize("kind", ["png", "pil", "bytes", "jpeg:90"])
@pytest.mark.parametrize(("label", "encoding"), [("label", "uint8"), ("y", "str_int"), ("class_name", "str")])
def test_mds_columns_are_read_by_their_encoding(tmp_path: Path, kind: str, label: str, encoding: str) -> None:
    values = [f"c{n}" for n in LABELS] if encoding == "str" else LABELS.tolist()
    rows = [
        {"image": image, label: value, "caption": "x"} for image, value in zip(PIXELS, values, strict=True)
    ]
    data = opened("mds", mds_of(tmp_path, {"image": kind, label: encoding, "caption": "str"}, rows))
    assert data.class_names == (["c0", "c1", "c2"] if encoding == "str" else [])
    assert [data.label(i) for i in range(8)] == LABELS.tolist()
    if kind.startswith("jpeg"):
        expected = [np.asarray(Image.open(io.BytesIO(png(x, "JPEG", quality=95)))) for x in PIXELS]
        assert np.array_equal(all_pixels(data), np.stack(expected))
    else:
        assert np.array_equal(all_pixels(data), PIXELS)


def test_mds_split_train_is_read(tmp_path: Path) -> None:
    for split, part in (("train", slice(8)), ("val", slice(2))):
        mds_of(tmp_path / split, {"image": "png", "label": "int"}, mds_rows(PIXELS)[part])
    data = opened("mds", tmp_path)
    assert len(data) == 8 and [skip.reason for skip in data.skipped] == ["outside of the split train"]
    (tmp_path / "train").rename(tmp_path / "test")
    assert "holds the splits test, val" in refused("mds", tmp_path)


@pytest.mark.parametrize("column", ["image", "label", "extra"])
def test_pickled_mds_column_is_refused_and_not_executed(tmp_path: Path, column: str) -> None:
    mark = tmp_path / "executed"
    columns = {"image": "png", "label": "int", column: "pkl"}
    rows = [row | {column: pickle.dumps(Payload(mark))} for row in mds_rows(PIXELS)]
    root = mds_of(tmp_path / "mds", columns, rows)
    assert f"pickled objects ({column} (pkl)), which are never executed" in refused("mds", root)
    if column == "label":
        assert "never executed" in refused("mds", root, image_key="image")
        assert len(opened("mds", root, image_key="image", label_key="none")) == 8
    if column == "extra":
        assert len(opened("mds", root, image_key="image")) == 8
    assert not mark.exists()


MDS_FAULTS = {
    "name": (lambda index: index["shards"][0]["raw_data"].update(basename="../x.mds"), "outside of the "
    "archive"),
    "missing": (lambda index: index["shards"][0]["raw_data"].update(basename="x.mds"), "x.mds is missing"),
    "samples": (lambda index: index["shards"][0].update(samples=7), "its table of 3 samples does not fit 7"),
    "version": (lambda index: index.update(version=9), "version 9, expected 2"),
    "format": (lambda index: index["shards"][0].update(format="json"), "format 'json', expected 'mds'"),
    "sizes": (lambda index: index["shards"][0].update(column_sizes=[None]), "without encoding or size"),
    "columns": (lambda index: index["shards"][1].update(column_encodings=["jpeg", "int"]), "other columns"),
    "empty": (lambda index: index.update(shards=[]), "lists no shards"),
    "no_shards": (lambda index: index.pop("shards"), "not an index of MDS shards"),
}  # fmt: skip


@pytest.mark.parametrize("name", MDS_FAULTS)
def test_broken_mds_index_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    change, message = MDS_FAULTS[name]
    root = mds_of(tmp_path, {"image": "png", "label": "int"}, mds_rows(PIXELS))
    index = json.loads((root / "index.json").read_text())
    change(index)
    (root / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=message):
        opened("mds", root)


def test_cut_and_compressed_mds_shards_are_refused(tmp_path: Path) -> None:
    root = mds_of(tmp_path, {"image": "png", "label": "int"}, mds_rows(PIXELS))
    shard = root / "shard.00001.mds"
    content = shard.read_bytes()
    shard.write_bytes(content[:-10])
    assert "is damaged: its table of 3 samples" in refused("mds", root)
    index = json.loads((root / "index.json").read_text())
    index["shards"][1] |= {"compression": "zstd", "zip_data": {"basename": "shard.00001.mds.zstd"}}
    (root / "index.json").write_text(json.dumps(index))
    shard.rename(root / "shard.00001.mds.zstd")
    command = f"run zstd --decompress {shard}.zstd -o {shard}"
    assert f"it is compressed (zstd), so {command}" in refused("mds", root)


def test_compressed_tar_files_are_refused_with_the_command(tmp_path: Path) -> None:
    file = tmp_path / "a.tar.gz"
    file.write_bytes(gzip.compress(tar_of(tmp_path / "b.tar", samples(PIXELS)).read_bytes()))
    (tmp_path / "b.tar").unlink()
    for root in (file, tmp_path):
        assert (
            f"is a compressed tar file, whose samples cannot be read in place; run gunzip {file}"
            in refused("webdataset", root)
        )


# Arrow files


def test_arrow_has_the_names_of_a_class_label(tmp_path: Path) -> None:
    root = saved(tmp_path, with_classes(table_of(ENCODED, LABELS), label=["ant", "bee", "cat"]))
    assert dict(found_in(opened("arrow", root)).classes) == {"ant": 3, "bee": 2, "cat": 3}


def test_arrow_split_train_is_read(tmp_path: Path) -> None:
    for split, rows in (("train", 8), ("test", 2)):
        saved(tmp_path / split, table_of(ENCODED, LABELS)[:rows], split=split)
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    data = opened("arrow", tmp_path)
    assert len(data) == 8 and [skip.reason for skip in data.skipped] == ["outside of the split train"]
    assert len(opened("arrow", tmp_path / "test")) == 2
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["validation", "test"]}))
    assert "holds the splits test, validation" in refused("arrow", tmp_path)


def test_pickled_arrow_type_is_refused(tmp_path: Path) -> None:
    extension = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": b"\x80"}
    table = table_of(ENCODED, LABELS)
    schema = pa.schema([table.schema.field("image"), table.schema.field("label").with_metadata(extension)])
    root = saved(tmp_path, pa.table(table.columns, schema=schema))
    assert "column 'label' has a pickled type, which is never executed" in refused("arrow", root)


ARROW_FAULTS = {
    "outside": ({"_data_files": [{"filename": "../x.arrow"}]}, "outside of the archive"),
    "missing": ({"_data_files": [{"filename": "x.arrow"}]}, "x.arrow is missing"),
    "indices": ({"_indices_data_files": [{"filename": "i.arrow"}]}, r"flatten_indices\(\)"),
    "none": ({"_data_files": []}, "lists no Arrow files"),
    "text": ({"_data_files": "x"}, "lists no Arrow files"),
}


@pytest.mark.parametrize("name", ARROW_FAULTS)
def test_broken_arrow_state_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    changed, message = ARROW_FAULTS[name]
    root = saved(tmp_path, table_of(ENCODED, LABELS))
    state = json.loads((root / "state.json").read_text())
    (root / "state.json").write_text(json.dumps(state | changed))
    with pytest.raises(UserError, match=message):
        opened("arrow", root)


@pytest.mark.parametrize(
    "error", [UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), OSError(), KeyError("x")]
)
def test_damaged_arrow_file_has_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """pyarrow raises these for names that are not UTF-8 and for files that end; some have no message."""
    root = saved(tmp_path, table_of(ENCODED, LABELS))

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(parquet, "_table", fails)
    reason = refused("arrow", root).partition("is a damaged arrow file: ")[2]
    assert len(reason.partition(";")[0]) > 2


def test_table_of_a_zip_file_may_be_larger_than_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("dataset.json", b" " * 5000)
    (entry,) = zipfile.ZipFile(file).infolist()
    assert len(read_member(file, entry, 2**30)) == 5000
    with pytest.raises(UserError, match="has 5,000 bytes, but at most 4,096 are read"):
        read_member(file, entry, 4096)
    with pytest.raises(UserError, match="at most 4,096 are read"):
        read_span(file, 0, 5000, "here", 4096)


def test_arrow_rows_without_bytes_and_cut_files_are_refused(tmp_path: Path) -> None:
    empty = saved(tmp_path / "a", table_of([*ENCODED[:7], {"bytes": None, "path": "x.png"}], LABELS))
    assert "column 'image' has no bytes; embed the images" in refused("arrow", empty)
    root = saved(tmp_path / "b", table_of(ENCODED, LABELS))
    file = root / "data-00001-of-00002.arrow"
    file.write_bytes(file.read_bytes()[:-300])
    assert "damaged arrow file" in refused("arrow", root)


# Zip files


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_files_without_a_table_have_class_folders(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        for number, (content, label) in enumerate(zip(ENCODED, LABELS, strict=True)):
            archive.writestr(f"class{label}/{number}.png", content)
        archive.writestr("__MACOSX/._0.png", b"")
    data = opened("zip", tmp_path / "a.zip")
    assert np.array_equal(all_pixels(data), PIXELS)
    assert data.class_names == ["class0", "class1", "class2"] and data.skipped[0].files == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (EDM | {"../x.png": ENCODED[0]}, "outside of the archive"),
        (EDM | {"x.png": ENCODED[0]}, "x.png is not listed in dataset.json"),
        (EDM | {"x.gif": b""}, "an image that is not supported"),
        (EDM | {"dataset.json": b"{"}, "not a readable table"),
        ({}, "holds no images"),
        (EDM | {NAMES[3]: ENCODED[3][:-90]}, "is a broken image"),
    ],
    ids=["outside", "not_listed", "gif", "table", "empty", "image"],
)
def test_broken_zip_file_is_refused_in_one_sentence(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        opened("zip", write(tmp_path / "a.zip", files))


def test_zip_member_whose_bytes_changed_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.zip", EDM)
    content = bytearray(file.read_bytes())
    content[content.index(ENCODED[2]) + 40] ^= 1
    file.write_bytes(content)
    assert "does not match its checksum" in refused("zip", file)


# All


@pytest.mark.parametrize("count", [25, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", WRITERS)
def test_mutated_container_is_read_or_refused(tmp_path: Path, kind: str, count: int) -> None:
    """Any other exception than `UserError` fails the test, and so does a crash of the process."""
    root = WRITERS[kind](tmp_path / "source")
    files = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
    check_mutated_reads(files, count, lambda: all_pixels(opened(kind, root)))


@pytest.mark.slow
def test_ten_thousand_tar_files_are_listed_in_bounded_memory(tmp_path: Path) -> None:
    members: Members = samples(PIXELS[:1], LABELS[:1])
    content = tar_of(tmp_path / "source.tar", members).read_bytes()
    (tmp_path / "source.tar").unlink()
    for number in range(10_000):
        (tmp_path / f"{number:05d}.tar").write_bytes(content)

    def check() -> None:
        tracemalloc.start()
        data = opened("webdataset", tmp_path)
        assert len(data) == 10_000 and tracemalloc.get_traced_memory()[1] < 200 * 2**20

    assert in_child(check) == 0


def test_folder_with_containers_and_images_is_ambiguous(tmp_path: Path) -> None:
    """A forgotten tar file does not hide the folders of classes."""
    (tmp_path / "n01").mkdir()
    (tmp_path / "n01" / "0.png").write_bytes(png(pixels()[0]))
    (tmp_path / "n01.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"n01.tar.*n01/0.png.*ambiguous"):
        image_kind(tmp_path)
