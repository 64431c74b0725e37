"""Videos and recordings are read alike by training and by evaluation: turned, cut or linked ones, clutter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.config.data_spec import DataSpec
from harness.data.found import found_in
from harness.errors import UserError
from harness.evaluation.samples.sources import open_source
from metrics import MetricError
from metrics.files.recordings import read_audio
from metrics.files.videos import read_videos
from tests.harness.data.pictures import opened, pixels, png
from tests.harness.data.recorded import frames, sound, tone, turned, video

MP4 = {"container": "mp4", "codec": "mpeg4", "form": "yuv420p"}
TURNS = [
    (0, -1, 1, 0),
    (0, 1, -1, 0),
    (-1, 0, 0, -1),
    (-1, 0, 0, 1),
    (1, 0, 0, -1),
    (0, 1, 1, 0),
    (0, -1, -1, 0),
]


def shown(pixels: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Return frames (T, H, W, C) as a display matrix shows them, pixel by pixel."""
    a, b, c, d = matrix
    q, p = np.mgrid[: pixels.shape[1], : pixels.shape[2]]
    column, row = a * p + c * q, b * p + d * q
    column, row = column - column.min(), row - row.min()
    out = np.zeros((len(pixels), row.max() + 1, column.max() + 1, 3), np.uint8)
    out[:, row, column] = pixels[:, q, p]
    return out


def trained_and_evaluated(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the first clip (T, H, W, C) as training and as evaluation read it."""
    trained = opened("videos", root).sample(0).x.transpose(1, 2, 3, 0)
    (evaluated,) = read_videos(root, 16, start="first")
    return trained, evaluated[0].numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize("matrix", TURNS)
def test_turned_video_is_shown_by_its_display_matrix(
    tmp_path: Path, matrix: tuple[int, int, int, int]
) -> None:
    content = video(frames(height=16, width=32), **MP4)
    for name, encoded in (("stored", content), ("turned", turned(content, matrix))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.mp4").write_bytes(encoded)
    stored = shown(trained_and_evaluated(tmp_path / "stored")[0], matrix)
    for found in trained_and_evaluated(tmp_path / "turned"):
        np.testing.assert_array_equal(found, stored)


def test_video_turned_by_other_than_quarters_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(turned(video(frames(height=16, width=16), **MP4), (1, 1, -1, 1)))
    with pytest.raises(UserError, match=r"x\.mp4 is stored turned by -?45 degrees; convert it upright"):
        opened("videos", tmp_path)
    with pytest.raises(MetricError, match=r"x\.mp4 is stored turned by -?45 degrees; convert it upright"):
        next(read_videos(tmp_path, 16))


EVEN = [125 * k for k in range(16)]
BROKEN_VIDEOS = {
    "cut.mkv": (lambda: video(frames())[:4000], r"is cut short: \d+ frames of 16"),
    "cut.mp4": (lambda: video(frames(), **MP4)[:2000], "cannot be decoded as video"),
    "uneven.mkv": (
        lambda: video(frames(), times=EVEN[:8] + [t + 400 for t in EVEN[8:]]),
        "variable frame rate",
    ),
    "old.wmv": (lambda: b"", r"\.wmv videos are not supported"),
}


@pytest.mark.parametrize("name", BROKEN_VIDEOS)
def test_broken_video_is_rejected_alike(tmp_path: Path, name: str) -> None:
    content, message = BROKEN_VIDEOS[name]
    (tmp_path / "good.mkv").write_bytes(video(frames()))
    (tmp_path / name).write_bytes(content())
    with pytest.raises(UserError, match=message):
        opened("videos", tmp_path)
    with pytest.raises(MetricError, match=message):
        list(read_videos(tmp_path, 4))


BROKEN_SOUNDS = {
    "cut.wav": (lambda: sound(tone())[:9000], "is cut short: 9000 bytes of 16428"),
    "cut.aiff": (lambda: sound(tone(), format="AIFF")[:9000], "is cut short: 9000 bytes of 16"),
    "five.wav": (lambda: sound(np.stack([tone()] * 5, 1)), "has 5 channels, expected at most 2"),
    "silent.wav": (lambda: sound(np.zeros(8192)), "is silent"),
    "old.wma": (lambda: b"", r"\.wma recordings are not supported"),
}


@pytest.mark.parametrize("name", BROKEN_SOUNDS)
def test_broken_recording_is_rejected_alike(tmp_path: Path, name: str) -> None:
    content, message = BROKEN_SOUNDS[name]
    (tmp_path / "good.wav").write_bytes(sound(tone()))
    (tmp_path / name).write_bytes(content())
    with pytest.raises(UserError, match=message):
        opened("sounds", tmp_path)
    with pytest.raises(MetricError, match=message):
        list(read_audio(tmp_path, 8000))


def test_links_and_clutter_give_the_same_videos(tmp_path: Path) -> None:
    content = video(frames())
    for name in ("store/c1/0.mkv", "clips/c0/0.mkv", "clips/c0/.ipynb_checkpoints/0.mkv", "clips/c0/._0.mkv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "clips" / "c1").symlink_to("../store/c1")
    found = found_in(opened("videos", tmp_path / "clips"))
    source = open_source(str(tmp_path / "clips"), "video", DataSpec()).found
    assert source is not None
    assert found.classes == (("c0", 1), ("c1", 1))
    assert found.samples == source.samples == 2
    assert found.skipped == source.skipped
    assert "hidden or left by programs: 2" in found.line()


@pytest.mark.parametrize("stray", ["preview.mp4", "sound.wav"])
def test_image_network_reads_the_images_of_a_folder_and_names_the_rest(tmp_path: Path, stray: str) -> None:
    for number, image in enumerate(pixels(3)):
        (tmp_path / f"{number}.png").write_bytes(png(image))
    (tmp_path / stray).write_bytes(video(frames()) if stray.endswith("mp4") else sound(tone()))
    source = open_source(str(tmp_path), "image", DataSpec())
    assert source.count == 3 and source.found is not None
    assert stray in source.found.line()
    other = "video" if stray.endswith("mp4") else "audio"
    media = open_source(str(tmp_path), other, DataSpec())
    assert (
        media.found is not None
        and media.found.samples == 1
        and "images: 3 (0.png, ...)" in media.found.line()
    )
