"""Labels of samples: from the chosen key of a file, or matched to the reference by class names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.harness.data.pictures import png, table_of, with_classes
from tests.harness.evaluation.samples.calls import assert_rejected, scored
from tests.harness.evaluation.samples.networks import bytes_of, save_means

LOCAL = ("--extractor", "local", "--metrics")


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Train the classifier for a quarter of its steps, which suffices to recognise labels."""
    monkeypatch.setenv("FLOWRACE_CACHE", str(tmp_path_factory.getbasetemp() / "labels"))
    monkeypatch.setattr("metrics.extractors.local.STEPS", 100)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    bunch = load_digits()
    return (bunch.images[:600] * 15.9).astype(np.uint8), bunch.target[:600]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, digits) -> Path:
    return folder(tmp_path_factory.mktemp("reference"), *digits)


def folder(path: Path, pixels: np.ndarray, names: np.ndarray) -> Path:
    for i, (x, name) in enumerate(zip(pixels, names, strict=True)):
        (path / str(name)).mkdir(exist_ok=True, parents=True)
        Image.fromarray(x).save(path / str(name) / f"{i:04d}.png")
    return path


def test_class_folders_are_matched_by_name(digits, reference: Path, tmp_path: Path) -> None:
    """Folders of digits 3 and 7 get the accuracy of the same images in an array with labels."""
    pixels, labels = digits
    some = np.isin(labels, (3, 7))
    two = folder(tmp_path / "two", pixels[some], labels[some])
    order = [p.parent.name for p in sorted(two.rglob("*.png"))]
    files = [np.asarray(Image.open(p)) for p in sorted(two.rglob("*.png"))]
    np.savez(tmp_path / "two.npz", arr_0=np.stack(files)[..., None], arr_1=np.array(order, int))
    named, labelled = (
        scored(tmp_path / x, "--against", reference, *LOCAL, "fd,accuracy") for x in ("two", "two.npz")
    )
    accuracy = named["metrics"]["accuracy:local"]
    assert accuracy["mean"] == labelled["metrics"]["accuracy:local"]["mean"] > 0.9
    assert named["protocol"]["classes"] == [3, 7] and labelled["protocol"]["classes"] is None
    assert named["metrics"]["fd:local"]["protocol"] == labelled["metrics"]["fd:local"]["protocol"]
    assert not any("by number alone" in text for text in named["warnings"])
    # With the same names on both sides, labels need no change.
    all_classes = scored(reference, "--against", reference, *LOCAL, "accuracy")["protocol"]
    assert all_classes["classes"] is None


@pytest.mark.slow
@pytest.mark.parametrize("end", ["npz", "parquet"])
def test_numbered_folders_match_numbers_and_names_of_files(digits, tmp_path: Path, end: str) -> None:
    """Twelve folders 0 .. 11, and a part of them, against the same images with labels in one file."""
    pixels, labels = digits
    labels = np.where(np.arange(len(labels)) % 5 == 0, 10 + labels % 2, labels)
    pixels = np.where(labels[:, None, None] > 9, 255 - pixels, pixels)
    real = tmp_path / f"real.{end}"
    if end == "npz":
        np.savez(real, images=pixels, labels=labels)
    else:
        names = [f"{i:02d}" for i in range(12)]
        pq.write_table(with_classes(table_of([png(x) for x in pixels], labels), label=names), real)
    for name, some in (("all", labels >= 0), ("part", np.isin(labels, (3, 10, 11)))):
        samples = folder(tmp_path / name, pixels[some], labels[some])
        found = scored(samples, "--against", real, *LOCAL, "accuracy")
        assert found["metrics"]["accuracy:local"]["mean"] > 0.9
        assert not any("numbered in the order" in text for text in found["warnings"])


@pytest.mark.slow
def test_classes_of_parquet_are_matched_by_name(digits, tmp_path: Path) -> None:
    """The same images under ClassLabel names in two orders have the same accuracy."""
    pixels, labels = digits
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    encoded = [png(x) for x in pixels]
    for name, order in (("real", words), ("fake", sorted(words))):
        numbers = [order.index(words[label]) for label in labels]
        pq.write_table(with_classes(table_of(encoded, numbers), label=order), tmp_path / f"{name}.parquet")
    found = scored(tmp_path / "fake.parquet", "--against", tmp_path / "real.parquet", *LOCAL, "accuracy")
    assert found["metrics"]["accuracy:local"]["mean"] > 0.95
    assert found["data"]["samples"]["classes"]["eight"] == int((labels == 8).sum())


def test_accuracy_names_labels_that_cannot_be_used(digits, reference: Path, tmp_path: Path) -> None:
    pixels, labels = digits
    np.savez(tmp_path / "x.npz", arr_0=pixels[..., None], arr_1=np.full(len(labels), -1))
    call = [tmp_path / "x.npz", "--against", reference, *LOCAL]
    assert_rejected(r"accuracy needs labels, but .*600 of 600 labels are hidden", *call, "accuracy")
    assert scored(*call, "fd")["metrics"]["fd:local"]["n"] == 600


def test_accuracy_rejects_a_class_that_the_reference_lacks(digits, reference: Path, tmp_path: Path) -> None:
    pixels, labels = digits
    other = folder(tmp_path / "other", pixels[:40], np.where(labels[:40] == 4, "four", labels[:40]))
    call = [other, "--against", reference, *LOCAL]
    assert_rejected(
        r"other has the class 'four', which .*reference.* does not have \(it has: 0, 1, 2, 3, 4, \.\.\.\)",
        *call,
        "accuracy",
    )
    assert scored(*call, "fd")["metrics"]["fd:local"]["n"] == 40


def test_class_folders_are_numbered_with_a_warning_when_the_network_has_no_names(tmp_path: Path) -> None:
    """Folders c and d become classes 0 and 1, red and green; three of 20 images are in the wrong one."""
    fake, green = np.zeros((20, 8, 8, 3), np.uint8), np.arange(20) % 2
    fake[np.arange(20), :, :, green] = 255
    shown = folder(tmp_path / "fake", fake, np.array(["c", "d"])[green ^ (np.arange(20) < 3)])
    found = scored(shown, "--extractor", f"torchscript:{save_means(tmp_path)}", "--metrics", "accuracy")
    assert found["metrics"]["accuracy:torchscript:means"]["mean"] == pytest.approx(17 / 20)
    assert any("numbered in the order of their names (c, d)" in text for text in found["warnings"])


def test_label_key_selects_the_labels(digits, reference: Path, tmp_path: Path) -> None:
    pixels, labels = digits
    np.savez(tmp_path / "x.npz", arr_0=pixels[..., None], arr_1=(labels + 1) % 10, mine=labels)
    call = [tmp_path / "x.npz", "--against", reference, *LOCAL, "accuracy"]
    usual, mine = (
        scored(*call, *words)["metrics"]["accuracy:local"]["mean"]
        for words in ((), ("--set", "data.label_key=mine"))
    )
    assert usual < 0.1 and mine > 0.9
    assert_rejected(
        r"x\.npz has no array 'nosuch' \(it has: arr_0, arr_1, mine\)",
        *call,
        "--set",
        "data.label_key=nosuch",
    )


def test_npy_is_rejected_when_it_has_another_size_than_requested(tmp_path: Path) -> None:
    for end, save in (("npy", np.save), ("npz", np.savez)):
        save(tmp_path / f"x.{end}", bytes_of(1, 30, 8, 6, 1))
    call = [
        tmp_path / "x.npy",
        "--against",
        tmp_path / "x.npy",
        "--extractor",
        f"torchscript:{save_means(tmp_path)}",
    ]
    message = r"data.resolution = 4: .*x\.npy holds images of 6x8 pixels and 1 channels, .*save it as npz"
    assert_rejected(message, *call, "--set", "data.resolution=4")
    assert_rejected("data.channels = 3: ", *call, "--set", "data.channels=3")
    assert scored(*call, "--set", "data.channels=1")["protocol"]["fake_shape"] == [1, 8, 6]
    call[0] = call[2] = tmp_path / "x.npz"
    assert scored(*call, "--set", "data.resolution=4")["protocol"]["fake_shape"] == [1, 4, 4]


def test_array_in_fortran_order_is_rejected(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.asfortranarray(bytes_of(1, 5, 8, 8, 3)))
    assert_rejected(
        r"x\.npy is in Fortran order; save numpy\.ascontiguousarray",
        tmp_path / "x.npy",
        "--against",
        tmp_path,
    )
