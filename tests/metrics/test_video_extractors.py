"""Video extractors: the three terms of `video:`, the classifier `video:local`, and I3D's protocol."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metrics import MetricError, frechet_distance
from metrics.extractors.registry import extractor_modality, load_extractor
from metrics.extractors.video import frames as video_frames
from metrics.extractors.video import i3d as video_i3d
from metrics.extractors.video.base import VideoExtractor

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning"
)


def clips_(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def script(tmp_path: Path):
    def save(module: nn.Module, name: str = "net.ts") -> Path:
        torch.jit.script(module).save(str(tmp_path / name))
        return tmp_path / name

    return save


class Means(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean([2, 3]), x.square().mean([2, 3])], 1)


# From images


@pytest.mark.parametrize("frames", [2, 3, 8])
def test_three_terms_equal_their_definitions(script, frames: int) -> None:
    extract = video_frames.load(f"torchscript:{script(Means())}", device=CPU)
    clips = clips_(3, frames, 3, 5, 4)
    x = clips.double().numpy() / 127.5 - 1
    f = np.concatenate([x.mean((3, 4)), (x**2).mean((3, 4))], axis=2)
    steps = np.mean([np.abs(f[:, t + 1] - f[:, t]) for t in range(frames - 1)], axis=0)
    late = f[:, frames - frames // 2 :].mean(1) - f[:, : frames // 2].mean(1)
    np.testing.assert_allclose(extract(clips), np.concatenate([f.mean(1), steps, late], 1), atol=1e-6)
    assert (extract.name, extract.dim, extract.least) == ("video:torchscript:net", 18, 2)


def test_each_term_has_its_invariances(script) -> None:
    """Order leaves the mean, reversal flips the sign of the last term, and freezing sets two terms to 0."""
    extract = video_frames.load(f"torchscript:{script(Means())}", device=CPU)
    clips = clips_(2, 6, 3, 5, 4)
    shown, change, way = extract(clips).chunk(3, 1)
    for other, signs in ((clips.flip(1), (1, 1, -1)), (clips[:, :1].expand(-1, 6, -1, -1, -1), (None, 0, 0))):
        for found, term, sign in zip(extract(other).chunk(3, 1), (shown, change, way), signs, strict=True):
            if sign is not None:
                torch.testing.assert_close(found, sign * term, atol=1e-6, rtol=1e-5)
    shuffled = extract(clips[:, [3, 0, 5, 1, 4, 2]]).chunk(3, 1)
    torch.testing.assert_close(shuffled[0], shown)
    assert not torch.allclose(shuffled[1], change) and not torch.allclose(shuffled[2], way)


def test_grey_clips_are_repeated_and_frames_are_split_in_chunks(
    script, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract = video_frames.load(f"torchscript:{script(Means())}", device=CPU)
    grey = clips_(5, 4, 1, 6, 6)
    expected = extract(grey.expand(-1, -1, 3, -1, -1))
    monkeypatch.setattr(video_frames, "CHUNK", 3)
    torch.testing.assert_close(extract(grey), expected)


def moving(labels: np.ndarray, frames: int = 6, seed: int = 0) -> np.ndarray:
    """Return clips (n, T, 1, 12, 12) of three kinds of bars that move to the right from random positions."""
    random = np.random.default_rng(seed)
    x = random.integers(0, 40, (len(labels), frames, 1, 12, 12), dtype=np.uint8)
    for clip, kind in zip(x, labels, strict=True):
        begin = random.integers(0, 3)
        for t in range(frames):
            clip[t, 0, kind * 4 : kind * 4 + 3, begin + t : begin + t + 3] += 200
    return x


@pytest.mark.slow
def test_video_local_detects_order_and_direction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metrics.extractors.local.STEPS", 60)
    labels = np.arange(120) % 3
    training = {"images": moving(labels), "labels": labels, "classes": 3, "cache": tmp_path}
    extract = video_frames.load("local", device=CPU, **training)
    assert (extract.name, extract.dim, extract.channels) == (
        "video:local",
        192,
        1,
    ) and extract.accuracy > 0.95
    real, fake = extract(torch.from_numpy(training["images"])), torch.from_numpy(moving(labels, seed=1))
    floor = frechet_distance(real, extract(fake)).mean
    order = torch.from_numpy(np.random.default_rng(0).permuted(np.tile(np.arange(6), (120, 1)), axis=1))
    changed = {
        "shuffled": fake[torch.arange(120)[:, None], order],
        "frozen": fake[:, :1].expand(-1, 6, -1, -1, -1),
        "reversed": fake.flip(1),
        "half rate": fake[:, [0, 0, 2, 2, 4, 4]],
    }
    for what, clips in changed.items():
        assert frechet_distance(real, extract(clips)).mean > 2 * floor, what


# I3D


class Detector(nn.Module):
    """A network with the signature of StyleGAN-V's file that also returns the flags it was called with."""

    def forward(
        self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> Tensor:
        flags = torch.tensor([float(rescale), float(resize), float(return_features)])
        x = x * (2.0 / 255.0) - 1.0
        return torch.cat([x.mean([3, 4]).flatten(1), flags.expand(x.shape[0], 3)], 1)


def test_i3d_is_called_with_the_arguments_of_stylegan_v(script) -> None:
    extract = video_i3d.load(script(Detector()), device=CPU)
    clips = clips_(video_i3d.CHUNK + 1, 16, 3, 20, 24)
    found = extract(clips)
    np.testing.assert_array_equal(found[:, -3:], 1)
    x = clips.double().numpy().transpose(0, 2, 1, 3, 4) / 127.5 - 1  # (B, C, T, H, W)
    np.testing.assert_allclose(found[:, :-3], x.mean((3, 4)).reshape(len(clips), -1), atol=1e-6)
    assert (extract.dim, extract.frames) == (51, 16)
    assert extract.name == f"i3d@{extract.sha256[:8]}"  # not the original file: not FVD


def test_i3d_has_its_plain_name_only_with_the_original_file(script, monkeypatch: pytest.MonkeyPatch) -> None:
    file = script(Detector())
    monkeypatch.setattr(video_i3d, "SHA256", video_i3d.load(file, device=CPU).sha256)
    assert video_i3d.load(file, device=CPU).name == "i3d"


def test_i3d_requires_its_number_of_frames(script) -> None:
    file = script(Detector())
    with pytest.raises(MetricError, match=r"'i3d@.*' takes clips of 16 frames; these have 8"):
        video_i3d.load(file, device=CPU)(clips_(1, 8, 3, 8, 8))
    assert video_i3d.load(f"{file}?frames=12", device=CPU)(clips_(2, 12, 3, 8, 8)).shape == (2, 39)
    for query in ("frames=9", "frames=x", "size=3", "frames="):
        with pytest.raises(MetricError, match=f"i3d option '{query}': the only option is frames="):
            video_i3d.load(f"{file}?{query}", device=CPU)


def test_i3d_rejects_other_files(script, tmp_path: Path) -> None:
    with pytest.raises(MetricError, match=r"net\.ts is not StyleGAN-V's I3D, which takes rescale"):
        video_i3d.load(script(Means()), device=CPU)
    with pytest.raises(MetricError, match=r"absent\.pt.*; download https://.* to this path"):
        video_i3d.load(tmp_path / "absent.pt", device=CPU)
    with pytest.raises(MetricError, match="'i3d' needs its file: download https://"):
        video_i3d.load(None, device=CPU)


# Invalid clips


@pytest.mark.parametrize(
    ("clips", "says"),
    [
        (torch.rand(2, 4, 3, 8, 8), "clips are float32; give bytes, uint8"),
        (clips_(2, 3, 8, 8), r"clips have shape \(2, 3, 8, 8\); expected \(B, T, C, H, W\)"),
        (clips_(2, 4, 8, 8, 3), "with 1 or 3 channels"),
        (clips_(0, 4, 3, 8, 8), r"clips have shape \(0,"),
        (np.zeros((2, 4, 3, 8, 8), np.uint8), "clips are a ndarray"),
        (clips_(2, 1, 3, 8, 8), "takes clips of 2 or more frames; these have 1"),
        (clips_(2, 4, 3, 8, 8), "takes clips of 1 channels; these have 3"),
    ],
)
def test_invalid_clips_are_rejected(clips: object, says: str) -> None:
    def network(x: Tensor) -> Tensor:
        return x.float().mean((3, 4)).flatten(1)

    extract = VideoExtractor("net", 4, "", "", 1, CPU, network, least=2)
    with pytest.raises(MetricError, match=says):
        extract(clips)


@pytest.mark.parametrize("name", ["", "yamnet:net.ts", "video:inception"])
def test_video_requires_an_image_extractor(name: str) -> None:
    with pytest.raises(
        MetricError, match=f"'video:{name}' needs an image extractor, for example video:inception"
    ):
        video_frames.load(name, device=CPU)


# Loading by name


def test_load_extractor_loads_video_extractors_by_name(script) -> None:
    file = script(Means())
    name = f"video:torchscript:{file}?dim=2"
    assert extractor_modality(name) == "video" and load_extractor(name).dim == 6
    assert load_extractor("video:torchscript", weights=file).dim == 18
    file = script(Detector(), "i3d.ts")
    assert load_extractor(f"i3d:{file}?frames=12").frames == 12
    with pytest.raises(MetricError, match=r"i3d\.ts is not the expected file"):
        load_extractor("i3d", weights=file, sha256="00ff")
    assert load_extractor("i3d", weights=file).sha256 == video_i3d.load(file, device=CPU).sha256
    for family in ("i3d", "videomae"):
        assert extractor_modality(family) == "video"
        with pytest.raises(MetricError, match=f"'{family}' needs its"):
            load_extractor(family)
    with pytest.raises(MetricError, match=r"unknown extractor 'videos'.*Did you mean 'video'"):
        extractor_modality("videos")
