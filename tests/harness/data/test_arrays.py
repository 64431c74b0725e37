"""Images in npz archives and IDX files, against torchvision and between formats."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

from harness.data.disk.arrays import read_idx
from harness.data.open import images
from harness.errors import UserError
from tests.harness.data.pictures import LABELS, all_pixels, folder_of, opened, parquet_of, pixels


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def idx(path: Path, array: np.ndarray) -> Path:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    (gzip.open if path.suffix == ".gz" else open)(path, "wb").write(header + array.tobytes())
    return path


def mnist_folder(root: Path, end: str = "", dash: str = "-") -> Path:
    root.mkdir(parents=True)
    idx(root / f"train-images{dash}idx3-ubyte{end}", pixels(channels=1)[..., 0])
    idx(root / f"train-labels{dash}idx1-ubyte{end}", LABELS.astype(np.uint8))
    return root


@pytest.mark.parametrize(
    ("image_key", "label_key", "more"),
    [
        ("train_x", "train_y", {"test_x": 0}),
        ("x_train", "y_train", {"x_test": 0}),
        ("images", "labels", {}),
        ("arr_0", "arr_1", {}),
    ],
)
def test_npz_arrays_are_found_by_their_usual_names(
    tmp_path: Path, image_key: str, label_key: str, more: dict[str, int]
) -> None:
    data = opened("npz", npz(tmp_path / "a.npz", **{image_key: pixels(), label_key: LABELS}, **more))
    assert (data.shape, data.classes, len(data)) == ((3, 8, 8), 3, 8)
    assert np.array_equal(all_pixels(data), pixels())
    assert images(data, np.arange(8))[1].tolist() == LABELS.tolist()


def test_npz_layouts_and_idx_give_the_same_data(tmp_path: Path) -> None:
    grey = pixels(channels=1)
    layouts = [grey, grey[..., 0], grey.transpose(0, 3, 1, 2), np.asfortranarray(grey[..., 0])]
    data_sets = [
        opened("npz", npz(tmp_path / f"{i}.npz", images=a, labels=LABELS)) for i, a in enumerate(layouts)
    ]
    data_sets.append(opened("idx", mnist_folder(tmp_path / "idx")))
    assert len({data.fingerprint for data in data_sets}) == 1
    assert {data.shape for data in data_sets} == {(1, 8, 8)}
    assert all(np.array_equal(all_pixels(data), grey) for data in data_sets)
    assert len({tuple(data.key(i) for i in range(8)) for data in data_sets}) == 1


def test_every_image_reader_gives_the_same_pixels(tmp_path: Path) -> None:
    """Resizing, cropping and conversion to grey do not depend on the file format."""
    tall = pixels(height=21, width=13)
    roots = {
        "npz": npz(tmp_path / "a.npz", images=tall, labels=LABELS),
        "folder": folder_of(tmp_path / "folder", tall),
        "parquet": parquet_of(tmp_path / "a.parquet", tall),
    }
    data_sets = [opened(name, root, resolution=8, channels=1) for name, root in roots.items()]
    assert {data.shape for data in data_sets} == {(1, 8, 8)}
    first = all_pixels(data_sets[0])
    assert all(np.array_equal(all_pixels(data), first) for data in data_sets)


def test_npz_arrays_are_chosen_by_key_and_labels_are_optional(tmp_path: Path) -> None:
    path = npz(
        tmp_path / "a.npz", cats=pixels(), kind=LABELS[:, None], images=pixels()[:2], labels=LABELS[:2]
    )
    assert len(opened("npz", path)) == 2
    data = opened("npz", path, image_key="cats", label_key="kind")
    assert (len(data), data.classes) == (8, 3)
    unlabelled = opened("npz", npz(tmp_path / "b.npz", arr_0=pixels()))
    assert (unlabelled.classes, unlabelled.sample(3).label) == (1, 0)
    assert len(opened("npz", npz(tmp_path / "c.npz", pics=pixels()), image_key="pics")) == 8


def test_npz_alpha_is_composited_on_white(tmp_path: Path) -> None:
    clear = np.dstack([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)])[None]
    assert all_pixels(opened("npz", npz(tmp_path / "a.npz", images=clear, labels=[0]))).min() == 255


def test_fingerprint_depends_on_shape_pixels_and_labels(tmp_path: Path) -> None:
    base = pixels(height=4, width=16)
    fingerprints = [
        opened("npz", npz(tmp_path / f"{i}.npz", images=a, labels=labels)).fingerprint
        for i, (a, labels) in enumerate(
            [(base, LABELS), (base.reshape(8, 16, 4, 3), LABELS), (base, LABELS[::-1]), (base ^ 1, LABELS)]
        )
    ]
    assert len(set(fingerprints)) == 4
    assert (
        opened("npz", npz(tmp_path / "x.npz", images=base, labels=LABELS.astype(np.uint8))).fingerprint
        == fingerprints[0]
    )


@pytest.mark.parametrize(("end", "dash"), [("", "-"), (".gz", "-"), ("", "."), (".gz", ".")])
def test_idx_files_are_found_by_every_usual_name(tmp_path: Path, end: str, dash: str) -> None:
    root = mnist_folder(tmp_path / "m", end, dash)
    by_file = opened("idx", root / f"train-images{dash}idx3-ubyte{end}")
    assert by_file.fingerprint == opened("idx", root).fingerprint


def test_read_idx_agrees_with_torchvision(tmp_path: Path) -> None:
    path = idx(tmp_path / "train-images-idx3-ubyte", pixels(5, 3, 7, 1)[..., 0])
    assert np.array_equal(read_idx(path, 3), read_sn3_pascalvincent_tensor(str(path)).numpy())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": pixels() / 255, "labels": LABELS}, r"float64, expected uint8"),
        ({"images": pixels().astype(np.int64), "labels": LABELS}, r"int64, expected uint8"),
        ({"images": pixels()[0, 0], "labels": LABELS}, r"shape \(8, 3\), which is not that of images"),
        ({"images": pixels(channels=2), "labels": LABELS}, r"is not that of images"),
        ({"images": pixels(height=3), "labels": LABELS}, r"fits both"),
        ({"images": pixels()[:0], "labels": LABELS[:0]}, r"is not that of images"),
        ({"images": pixels(), "labels": LABELS[:7]}, r"labels have shape \(7,\), expected \(8,\)"),
        ({"images": pixels(), "labels": LABELS - 2}, r"label -2 of row 0 is out of range"),
        (
            {"images": pixels(), "labels": LABELS + 10**6 * (LABELS == 2)},
            r"label 1000002 of row 5 is out of range",
        ),
        (
            {"images": np.array([{}] * 8, dtype=object), "labels": LABELS},
            r"a\.npz is not a readable .npz file",
        ),
        ({"pictures": pixels(), "kinds": LABELS}, r"arrays pictures, kinds; set data.image_key"),
    ],
)
def test_npz_raises_for_arrays_that_are_no_images_or_labels(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        opened("npz", npz(tmp_path / "a.npz", **arrays))


@pytest.mark.parametrize(
    ("place", "value"), [(10, 99), (8, 1), (8, 32)], ids=["other compression", "encrypted", "patched"]
)
def test_npz_raises_for_an_archive_that_python_cannot_unpack(tmp_path: Path, place: int, value: int) -> None:
    """The method and the flags are changed in the zip's directory, and in the local header two bytes
    earlier."""
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 4, 4), np.uint8), labels=np.arange(2))
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[place - 2] = content[content.index(b"PK\x01\x02") + place] = value
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.npz is not a readable \.npz file"):
        opened("npz", tmp_path / "x.npz")


def test_npz_raises_for_unreadable_files_and_unknown_keys(tmp_path: Path) -> None:
    def check_raises(message: str, root: Path | str, **fields: Any) -> None:
        with pytest.raises(UserError, match=message):
            opened("npz", root, **fields)

    path = npz(tmp_path / "a.npz", images=pixels(), labels=LABELS)
    check_raises("data.root is empty", "")
    check_raises("no such file", tmp_path / "b.npz")
    check_raises(
        r"unknown data.image_key in \S*a.npz 'image' .*Did you mean 'images'", path, image_key="image"
    )
    check_raises(r"unknown data.label_key", path, label_key="y")
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps([1, 2]))
    (tmp_path / "cut.npz").write_bytes(path.read_bytes()[:300])
    (tmp_path / "flipped.npz").write_bytes(path.read_bytes().replace(pixels().tobytes()[:20], bytes(20)))
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "one.npy", pixels())
    for name in ("pickle.npz", "cut.npz", "flipped.npz", "empty.npz", "one.npy"):
        check_raises(f"{name} is not a readable .npz file", tmp_path / name)
    check_raises("holds 5 .npz files, expected one", tmp_path)


def test_idx_raises_for_damaged_or_missing_files(tmp_path: Path) -> None:
    def check_raises(message: str, root: Path) -> None:
        with pytest.raises(UserError, match=message):
            opened("idx", root)

    root = mnist_folder(tmp_path / "m")
    file, labels = root / "train-images-idx3-ubyte", root / "train-labels-idx1-ubyte"
    check_raises("the name does not contain 'images'", labels)
    whole = file.read_bytes()
    for content, message in [
        (whole[:-1], r"has 527 bytes, but its header \[8, 8, 8\] requires 528"),
        (whole + b"\0", r"has 529 bytes"),
        (whole[:9], r"has 9 bytes"),
        (b"\0\0\x0d\3" + whole[4:], r"is not an IDX file of unsigned bytes in 3 dimensions"),
        (b"", r"is not an IDX file"),
    ]:
        file.write_bytes(content)
        check_raises(message, root)
    file.write_bytes(whole)
    idx(labels, LABELS[:5].astype(np.uint8))
    check_raises(r"labels have shape \(5,\)", root)
    labels.unlink()
    check_raises("has no labels: expected train-labels-idx1-ubyte", root)
    (root / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(whole)[:50])
    check_raises(r"cannot read \S*idx1-ubyte.gz", root)
    file.unlink()
    check_raises("has no train-images-idx3-ubyte", root)


def test_npz_reads_mnist(shared_data: Path) -> None:
    data = opened("npz", shared_data / "mnist")
    assert (len(data), data.shape, data.classes) == (60_000, (1, 28, 28), 10)
    counts = np.bincount(images(data, np.arange(60_000))[1])  # published with the data
    assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert opened("npz", shared_data / "mnist" / "mnist.npz", resolution=32).sample(0).x.shape == (
        1,
        32,
        32,
    )
