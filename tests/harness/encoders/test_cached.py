"""Cached features: the bits of an online pass, and the life of their file."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.assembly.resolve import load_spec
from harness.config import registry
from harness.data.feed import Feed
from harness.data.open import images, open_dataset, split
from harness.encoders import cached
from harness.encoders.base import Architecture, Viewer, open_encoder, view_of
from harness.errors import UserError
from harness.files.cache import cache_dir
from harness.flow.batch import View
from harness.runtime.random_streams import Streams
from tests.support.runs import events, losses, tiny, trained, weights

GRID = (4, 4)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLOWRACE_CACHE", str(tmp_path / "cache"))


def opened(name: str = "cached:random:tiny", dataset: Any = None) -> Any:
    choice = SimpleNamespace(name=name, weights="", sha256="", download=False)
    return open_encoder(choice, dataset or digits(), grid=GRID, held_out=0.1, device=CPU)


def digits() -> Any:
    return open_dataset(load_spec("digits").data)


def pictures(index: np.ndarray) -> Tensor:
    return torch.from_numpy(images(digits(), index)[0]).float() / 127.5 - 1


def tables() -> list[Path]:
    return sorted(cache_dir("features").glob("*.npy"))


class Counting(Viewer):
    """An encoder of the mean and mean square of each quarter of an image, which counts the images."""

    images_encoded = 0
    name, dim, params, flops, sha256, accuracy = "count:x", 2, 0, 5, "0" * 64, None
    power = 2.0

    def __init__(self, *_: Any, grid: tuple[int, int], **__: Any) -> None:
        self.grid = grid

    @staticmethod
    def architecture(*_: Any) -> Architecture:
        return Architecture(2, 5)

    def view(self, x: Tensor, *, summary: bool = False, attention: int = 0) -> View:
        type(self).images_encoded += len(x)
        quarters = (
            x.unflatten(2, (2, -1)).unflatten(4, (2, -1)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        )
        return View(torch.stack([quarters.mean(-1), (quarters.abs() ** self.power).mean(-1)], -1))


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> type[Counting]:
    monkeypatch.setitem(registry.ENCODERS, "count", f"{__name__}:Counting")
    monkeypatch.setattr(
        registry,
        "load",
        lambda kind, name, load=registry.load: Counting if name == "count" else load(kind, name),
    )
    monkeypatch.setattr(Counting, "images_encoded", 0)
    return Counting


@pytest.mark.parametrize("inner", ["random:tiny", "random:base"])
def test_view_at_returns_the_bits_of_an_online_pass(inner: str) -> None:
    """Rows in any order and number, some twice, equal the inner encoder's features of the same images."""
    kept, online = opened(f"cached:{inner}"), opened(inner)
    draw = np.random.default_rng(0)
    for size in (1, 3, 100):
        index = draw.integers(0, 1797, size)
        found = view_of(kept, index, pictures(index)).tokens
        assert found.dtype == torch.float32 and found.shape == (size, 16, online.dim)
        assert torch.equal(found, view_of(online, index, pictures(index)).tokens)


def test_view_at_returns_the_bits_of_autocast_under_autocast() -> None:
    kept, online, index = opened(), opened("random:tiny"), np.arange(32)
    plain = kept.view_at(index, pictures(index)).tokens
    with torch.autocast("cpu", torch.bfloat16):
        rounded = kept.view_at(index, pictures(index)).tokens
        assert torch.equal(rounded, online.features(pictures(index)))
    assert not torch.equal(plain, rounded)
    assert torch.equal(plain, kept.view_at(index, pictures(index)).tokens)
    assert len(tables()) == 2


def test_features_are_computed_once(counting: type[Counting]) -> None:
    index = np.array([5, 1700])
    first = opened("cached:count:x").view_at(index, pictures(index)).tokens
    assert counting.images_encoded == 1797 + cached.PROBE
    encoder = opened("cached:count:x")
    assert torch.equal(encoder.view_at(index, pictures(index)).tokens, first)
    encoder.view_at(index, pictures(index))
    assert counting.images_encoded == 1797 + 2 * cached.PROBE
    # One image by hand.
    pixels = digits().sample(1700).x.astype(float) / 127.5 - 1
    assert first[1, 2, 0].item() == pytest.approx(pixels[0, 4:, :4].mean(), abs=1e-6)
    assert first[1, 2, 1].item() == pytest.approx((pixels[0, 4:, :4] ** 2).mean(), abs=1e-6)


def test_file_depends_on_encoder_data_and_transform(
    counting: type[Counting], monkeypatch: pytest.MonkeyPatch
) -> None:
    index = np.arange(4)
    opened("cached:count:x").view_at(index, pictures(index))
    opened("cached:random:tiny").view_at(index, pictures(index))
    other = SimpleNamespace(
        **{n: getattr(digits(), n) for n in ("shape", "classes", "sample")}, fingerprint="f" * 16
    )
    other = type(
        "Other", (), {**vars(other), "__len__": lambda _: 20, "sample": lambda _, i: digits().sample(i + 9)}
    )()
    opened("cached:count:x", other).view_at(index, pictures(index))
    assert len(tables()) == 3
    # A change of the transform, which neither name nor weights show.
    monkeypatch.setattr(counting, "power", 2.5)
    opened("cached:count:x").view_at(index, pictures(index))
    monkeypatch.setattr(counting, "sha256", "1" * 64)
    opened("cached:count:x").view_at(index, pictures(index))
    assert len(tables()) == 5


@pytest.mark.parametrize("harm", ["flip", "cut", "header", "no sum", "sum", "empty"])
def test_damaged_file_is_written_again(counting: type[Counting], harm: str) -> None:
    index = np.arange(100)
    good = opened("cached:count:x").view_at(index, pictures(index)).tokens.clone()
    file, counting.images_encoded = tables()[0], 0
    content, total = bytearray(file.read_bytes()), file.with_name(f"{file.name}.sha256")
    if harm == "flip":
        content[-77] ^= 1
    elif harm == "header":
        content[:6] = b"broken"
    file.write_bytes({"cut": content[:-8], "empty": b""}.get(harm, content))
    if harm == "no sum":
        total.unlink()
    elif harm == "sum":
        total.write_bytes(b"\xff\xfe")
    assert torch.equal(opened("cached:count:x").view_at(index, pictures(index)).tokens, good)
    assert counting.images_encoded == 1797 + cached.PROBE
    assert tables() == [file]


def test_failed_write_leaves_no_file(counting: type[Counting], monkeypatch: pytest.MonkeyPatch) -> None:
    index = np.arange(3)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        UserError, match=r"cannot write the features .*No space left.*'count:x' without cached:"
    ):
        opened("cached:count:x").view_at(index, pictures(index))
    assert [f.suffix for f in cache_dir("features").iterdir()] == [".lock"]
    monkeypatch.undo()


def _open_in_child(cache: str, writers: Any) -> None:
    os.environ["FLOWRACE_CACHE"] = cache
    torch.set_num_threads(1)
    write = cached.write
    cached.write = lambda *args: (writers.append(os.getpid()), write(*args))
    opened().view_at(np.arange(2), pictures(np.arange(2)))


def test_two_processes_write_the_file_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    with context.Manager() as manager:
        writers = manager.list()
        both = [
            context.Process(target=_open_in_child, args=(str(tmp_path / "cache"), writers)) for _ in range(2)
        ]
        for process in both:
            process.start()
        for process in both:
            process.join(60)
        assert [process.exitcode for process in both] == [0, 0]
        assert len(writers) == 1


def test_encoder_reports_one_off_flops_and_inner_properties() -> None:
    kept, online = opened(), opened("random:tiny")
    assert (kept.name, kept.flops, kept.one_off_flops) == ("cached:random:tiny", 0, 1797 * online.flops)
    assert (kept.dim, kept.params, kept.sha256) == (online.dim, online.params, online.sha256)
    assert torch.equal(kept.features(pictures(np.arange(3))), online.features(pictures(np.arange(3))))
    about = cached.CachedEncoder.architecture("random:tiny", (1, 8, 8), 10, GRID)
    assert about == Architecture(online.dim, 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cached:random", "names no model"),
        ("cached:cached:random:tiny", "is cached twice; write 'cached:random:tiny'"),
        ("cached:randon:tiny", "Did you mean 'random'"),
        ("cached:random:huge", "unknown encoder size 'huge'"),
    ],
)
def test_encoder_name_is_rejected_when_wrong(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened(name)


def test_feed_place_returns_data_set_indices() -> None:
    """Also across the end of an epoch: a batch holds the images of the data set at these indices."""
    dataset = digits()
    sides = split(dataset, 0.1)
    feed = Feed(dataset, sides.train, Streams(3), label_drop=0.1, flip=False)
    n = len(sides.train)
    place = feed.place(np.arange(2 * n))
    assert sorted(place[:n]) == sorted(place[n:]) == sides.train.tolist()
    assert place[:n].tolist() != place[n:].tolist()
    index = np.arange(n - 5, n + 5)
    assert torch.equal(feed.batch(index).x0, pictures(feed.place(index)))


@pytest.mark.slow
def test_run_is_the_same_with_cached_features(tmp_path: Path) -> None:
    """Losses and weights are equal; only the encoder's FLOPs are saved."""
    settings = ("method.name=repa", "method.encoder.name=")
    online = trained(tiny(*settings[:1], settings[1] + "random:tiny"), tmp_path)
    kept = trained(tiny(*settings[:1], settings[1] + "cached:random:tiny"), tmp_path)
    assert losses(kept) == losses(online)
    assert weights(kept) == weights(online)
    flops = [[event["flops"] for event in events(record) if "flops" in event] for record in (kept, online)]
    assert all(a < b for a, b in zip(*flops, strict=True))


def test_flip_is_rejected_before_anything_is_written(tmp_path: Path) -> None:
    spec = tiny("method.name=repa", "method.encoder.name=cached:random:tiny", "data.flip=true")
    with pytest.raises(UserError, match=r"data\.flip = true .*set data\.flip=false.*'random:tiny'"):
        trained(spec, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_summary_and_attention_are_rejected(counting: type[Counting]) -> None:
    index = np.arange(2)
    for extras in ({"summary": True}, {"attention": 1}):
        with pytest.raises(UserError, match=r"'cached:count:x' stores tokens only.*; use 'count:x'"):
            opened("cached:count:x").view_at(index, pictures(index), **extras)
