"""The local classifier: accuracy, training as a pure function of the data, and a cache that is verified."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from sklearn.datasets import load_digits

from metrics import Extractor, MetricError, frechet_distance, load_extractor
from metrics.files.cache import Saved, kept


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    return np.round(bunch.images[:, None] * (255 / 16)).astype(np.uint8)[order], bunch.target[order]


@pytest.fixture(scope="module")
def trained(digits) -> Extractor:
    images, labels = digits
    return load_extractor("local", images=images[:1600], labels=labels[:1600], classes=10)


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metrics.extractors.local.STEPS", 3)


def small(shape: tuple[int, ...] = (40, 1, 8, 8), classes: int = 3, seed: int = 0) -> dict:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, shape, dtype=np.uint8)
    return {"images": images, "labels": random.integers(0, classes, shape[0]), "classes": classes}


def test_classifier_recognises_held_out_digits(trained: Extractor, digits) -> None:
    images, labels = digits
    with torch.no_grad():
        right = trained.outputs(torch.from_numpy(images[1600:]))["logits"].argmax(1).numpy() == labels[1600:]
    assert right.mean() > 0.95 and trained.accuracy > 0.95
    assert (trained.name, trained.dim, trained.channels) == ("local", 64, 1)


def test_distance_rises_with_noise_and_with_lost_classes(trained: Extractor, digits) -> None:
    images, labels = digits
    real, fake, kinds = images[:800], images[800:1600], labels[800:1600]
    noise = np.random.default_rng(1).standard_normal(fake.shape)

    def distance(pixels: np.ndarray) -> float:
        features = [trained(torch.from_numpy(x)) for x in (real, pixels)]
        return float(frechet_distance(*features))

    noisy = [
        np.clip(np.round(fake + level * noise), 0, 255).astype(np.uint8) for level in (0, 15, 30, 60, 120)
    ]
    rising = [distance(x) for x in noisy]
    assert rising == sorted(rising) and rising[2] > 1.2 * rising[0]
    lost = [distance(fake[kinds < classes]) for classes in (10, 8, 5, 2)]
    assert lost == sorted(lost) and lost[1] > 2 * lost[0]
    assert distance(np.repeat(fake[:50], 16, axis=0)) > 2 * rising[0]


def test_features_do_not_depend_on_the_batch(trained: Extractor, digits) -> None:
    images = torch.from_numpy(digits[0][:64])
    together = trained(images)
    separate = torch.cat([trained(part) for part in images.split(5)])
    assert together.dtype == torch.float32 and together.shape == (64, 64)
    torch.testing.assert_close(together, separate, rtol=1e-5, atol=1e-5)


def test_training_is_a_pure_function_and_restores_torch_settings(brief) -> None:
    threads = torch.get_num_threads()
    shas = []
    try:
        for count, seed in ((1, 0), (2, 7)):
            torch.set_num_threads(count)
            torch.manual_seed(seed)
            state = torch.get_rng_state()
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                shas.append(load_extractor("local", **small()).sha256)
            assert torch.get_num_threads() == count
            assert torch.equal(torch.get_rng_state(), state)
    finally:
        torch.set_num_threads(threads)
    assert shas[0] == shas[1]
    assert load_extractor("local", **small(seed=1)).sha256 != shas[0]


@pytest.mark.parametrize(
    "shape", [(20, 1, 1, 1), (20, 3, 5, 7), (20, 1, 90, 40), (21, 3, 32, 32), (20, 3, 2, 70)]
)
def test_images_of_any_shape_are_accepted(brief, shape: tuple[int, ...]) -> None:
    data = small(shape)
    features = load_extractor("local", **data)(torch.from_numpy(data["images"]))
    assert features.shape == (shape[0], 64) and features.isfinite().all()


def test_cached_entry_is_used(brief, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_extractor("local", **small(), cache=tmp_path)
    monkeypatch.setattr("metrics.extractors.local._train", lambda *_: pytest.fail("trained again"))
    again = load_extractor("local", **small(), cache=tmp_path)
    assert (again.sha256, again.accuracy) == (first.sha256, first.accuracy)
    images = torch.from_numpy(small()["images"])
    assert torch.equal(again(images), first(images))
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".lock"}


@pytest.mark.parametrize("key", ["images", "labels", "classes"])
def test_other_data_create_another_cache_entry(brief, tmp_path: Path, key: str) -> None:
    data = small()
    other = {"images": 255 - data["images"], "labels": (data["labels"] + 1) % 3, "classes": 4}
    load_extractor("local", **data, cache=tmp_path)
    load_extractor("local", **{**data, key: other[key]}, cache=tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


@pytest.mark.parametrize("damage", ["truncated", "one byte", "empty", "another accuracy"])
def test_damaged_entry_is_recreated(brief, tmp_path: Path, monkeypatch, damage: str) -> None:
    first = load_extractor("local", **small(), cache=tmp_path)
    (entry,) = tmp_path.glob("*.safetensors")
    whole = entry.read_bytes()
    middle = len(whole) // 2
    broken = {
        "truncated": whole[:middle],
        "one byte": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "empty": b"",
        "another accuracy": whole.replace(b'"accuracy":"0', b'"accuracy":"9'),
    }[damage]
    assert broken != whole
    entry.write_bytes(broken)
    again = load_extractor("local", **small(), cache=tmp_path)
    monkeypatch.setattr("metrics.extractors.local._train", lambda *_: pytest.fail("trained again"))
    third = load_extractor("local", **small(), cache=tmp_path)
    assert first.sha256 == again.sha256 == third.sha256
    assert first.accuracy == again.accuracy == third.accuracy


def test_failed_write_leaves_no_entry(brief, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        MetricError, match=r"cannot write the cache file .*local-\w+\.safetensors: No space left on device"
    ):
        load_extractor("local", **small(), cache=tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_full_disk_is_reported_when_tensors_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors raises its own error in this case."""

    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(
        MetricError, match=r"cannot write the cache file .*x\.safetensors: I/O error: No space left"
    ):
        kept(tmp_path / "x.safetensors", lambda: Saved({"x": torch.ones(2)}, {}))
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_second_process_waits_for_the_lock(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> Saved:
        made.append(1)
        return Saved({"x": torch.ones(2)}, {"accuracy": "1"})

    with open(tmp_path / "entry.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        other = threading.Thread(target=kept, args=(tmp_path / "entry.safetensors", make))
        other.start()
        other.join(timeout=0.2)
        assert other.is_alive() and made == []
    other.join(timeout=30)
    assert kept(tmp_path / "entry.safetensors", make).tensors["x"].tolist() == [1, 1] and made == [1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"labels": None}, "give images, labels and classes"),
        ({"classes": 1}, "no classes; use another extractor"),
        ({"images": np.zeros((40, 1, 8, 8), np.float32)}, "images are float32; give bytes"),
        ({"images": np.zeros((40, 8, 8), np.uint8)}, r"images have shape \(40, 8, 8\)"),
        ({"images": np.zeros((40, 4, 8, 8), np.uint8)}, "with 1 or 3 channels"),
        ({"labels": np.zeros(39, int)}, "one integer label for each"),
        ({"labels": np.zeros(40)}, "float64"),
        ({"labels": np.full(40, 3)}, r"label 3 is out of range; expected 0 .. 2 for 3 classes"),
        ({"labels": np.full(40, -1)}, "label -1 is out of range"),
        ({"images": np.zeros((9, 1, 8, 8), np.uint8), "labels": np.zeros(9, int)}, "at least 20 images"),
        ({"weights": "x.safetensors"}, "takes no weights"),
    ],
)
def test_invalid_training_data_are_rejected(change: dict, says: str) -> None:
    with pytest.raises(MetricError, match=says):
        load_extractor("local", **{**small(), **change})


def test_images_with_other_channels_are_rejected(trained: Extractor) -> None:
    with pytest.raises(MetricError, match="takes images of 1 channels; these have 3"):
        trained(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
