"""Videos on disk: exact round trips of lossless files, and errors that name the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("av")
pytest.importorskip("soundfile")

from harness.data.dataset import label_of
from harness.data.open import split
from harness.errors import UserError
from metrics.files.videos import decoded_frames
from tests.harness.data.pictures import opened, table_of
from tests.harness.data.recorded import frames, sound, tone, video

MP4 = {"container": "mp4", "codec": "mpeg4", "form": "yuv420p"}
EVEN = [125 * k for k in range(16)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write videos of 16 and 40 frames in one class, and of 20 in another."""
    root = tmp_path / "videos"
    for name, count in (("a/one.mkv", 16), ("a/two.MKV", 40), ("b/deep/three.mkv", 20)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(video(frames(count, seed=count)))
    (root / "notes.txt").write_text("no video")
    (root / "a" / ".hidden.mkv").write_text("no video")
    return root


def test_samples_are_clips_end_to_end(folder: Path) -> None:
    data = opened("videos", folder)
    assert (data.modality, data.shape, data.classes, data.class_names) == (
        "video",
        (3, 16, 8, 8),
        2,
        ["a", "b"],
    )
    assert [data.sample(i).label for i in range(len(data))] == [0, 0, 0, 1]
    clips = [
        frames(16, seed=16),
        frames(40, seed=40)[:16],
        frames(40, seed=40)[16:32],
        frames(20, seed=20)[:16],
    ]
    for index, pixels in enumerate(clips):
        np.testing.assert_array_equal(data.sample(index).x, pixels.transpose(3, 0, 1, 2))
        assert data.sample(index).x.dtype == np.uint8


def test_decoded_clips_are_cached_up_to_the_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Room for two clips.
    monkeypatch.setattr("harness.data.disk.media.REMEMBERED", 2 * 3 * 16 * 8 * 8)
    data, reads = opened("videos", folder), []
    monkeypatch.setattr(
        "harness.data.disk.videos.decoded_frames",
        lambda file: (reads.append(file.name), decoded_frames(file))[1],
    )
    first = [data.sample(i).x for i in range(4)]
    for before, again in zip(first, [data.sample(i).x for i in range(4)], strict=True):
        np.testing.assert_array_equal(before, again)
    assert len(reads) == 4 + 2


def test_clips_of_a_video_are_on_one_side_of_the_split(folder: Path) -> None:
    data = opened("videos", folder, frames=4)
    assert len(data) == 4 + 10 + 5
    videos = (range(4), range(4, 14), range(14, 19))
    assert [len({data.key(i) for i in clips}) for clips in videos] == [1, 1, 1]
    assert len({data.key(i) for i in range(19)}) == 3
    held_out = set(split(data, 0.01).held_out)
    assert all(len({i in held_out for i in clips}) == 1 for clips in videos)


def test_videos_obeys_resolution_and_channels(folder: Path) -> None:
    data = opened("videos", folder, resolution=4, channels=1)
    assert data.shape == (1, 16, 4, 4) and data.sample(0).x.shape == (1, 16, 4, 4)


def parquet(path: Path, cells: list, labels: list[int]) -> Path:
    pq.write_table(table_of(cells, labels, column="video"), path)
    return path


def test_parquet_and_folder_are_the_same_data(folder: Path, tmp_path: Path) -> None:
    cells = [(folder / name).read_bytes() for name in ("a/one.mkv", "a/two.MKV", "b/deep/three.mkv")]
    rows, files = (
        opened("videos", parquet(tmp_path / "x.parquet", cells, [0, 0, 1])),
        opened("videos", folder),
    )
    assert rows.fingerprint == files.fingerprint and len(rows) == len(files)
    for index in range(len(files)):
        np.testing.assert_array_equal(rows.sample(index).x, files.sample(index).x)


@pytest.mark.parametrize("container", ["mp4", "gif", "avi"])
def test_other_containers_keep_number_and_order_of_frames(tmp_path: Path, container: str) -> None:
    """Frames of uniform grey survive lossy codecs."""
    flat = np.repeat(np.arange(16, dtype=np.uint8) * 14, 16 * 16 * 3).reshape(16, 16, 16, 3)
    how = {"mp4": MP4, "gif": {"codec": "gif", "form": "rgb8"}, "avi": {"codec": "mjpeg", "form": "yuvj420p"}}
    (tmp_path / f"x.{container}").write_bytes(video(flat, **{"container": container} | how[container]))
    found = opened("videos", tmp_path).sample(0).x
    np.testing.assert_allclose(found.mean((0, 2, 3)), flat.mean((1, 2, 3)), atol=20)


BROKEN = {
    "cut.mp4": (lambda: video(frames(), **MP4)[:2000], "cannot be decoded as video"),
    "cut.mkv": (lambda: video(frames())[:4000], r"is cut short: \d+ frames of 16"),
    "cut.webm": (
        lambda: video(frames(height=16, width=16), "webm", "libvpx-vp9", "yuv420p")[:3000],
        "is cut short|has no fr",
    ),
    "cut.avi": (lambda: video(frames(), "avi", "mjpeg", "yuvj420p")[:7000], "is cut short|cannot be decoded"),
    "empty.mp4": (lambda: b"", "is empty: 0 bytes"),
    "header.mkv": (lambda: video(frames())[:300], "cannot be decoded as video|has no frames|is cut short"),
    "text.mp4": (lambda: b"no video at all", "cannot be decoded as video"),
    "sound.mp4": (lambda: sound(tone()), "has no video stream"),
    "one.mkv": (lambda: video(frames(height=1, width=1)), r"is 1x1 pixels, expected at least 8x8"),
    "uneven.mkv": (
        lambda: video(frames(), times=EVEN[:8] + [t + 400 for t in EVEN[8:]]),
        "variable frame rate: intervals of 125 to 525 ms",
    ),
    "short.mkv": (lambda: video(frames(5)), "has 5 frames, but a clip takes 16.*data.frames=5"),
    "still.mkv": (lambda: video(frames(1)), "has 1 frame, but a clip takes 16; remove it"),
    "wide.mkv": (
        lambda: video(frames(width=12)),
        r"is 12x8 pixels, but \S*one.mkv is 8x8; choose one size, for example --set data.resolution=32",
    ),
    **{f"old.{end}": (lambda: b"", rf"\.{end} videos are not supported; convert them to MP4")
       for end in ("wmv", "asf", "3gp", "3g2", "m2v", "mxf", "flv")},
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_videos_raises_an_error_that_names_the_file_when_broken(folder: Path, name: str) -> None:
    content, message = BROKEN[name]
    (folder / "b" / name).write_bytes(content())
    with pytest.raises(UserError, match=rf"{name}.* ?({message})") as raised:
        opened("videos", folder)
    assert "\n" not in str(raised.value)


def test_constant_frame_rate_passes_despite_rounded_times(tmp_path: Path) -> None:
    """At 30 frames per second, intervals are 33 or 34 ms in a container that counts milliseconds."""
    (tmp_path / "x.mkv").write_bytes(video(frames(), times=[round(1000 * k / 30) for k in range(16)]))
    assert len(opened("videos", tmp_path)) == 1


def test_videos_reads_a_file_by_content_when_its_suffix_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "x.avi").write_bytes(video(frames()))
    np.testing.assert_array_equal(opened("videos", tmp_path).sample(0).x, frames().transpose(3, 0, 1, 2))


@pytest.mark.parametrize("end", ["qt", "f4v"])
def test_videos_reads_mp4_with_the_suffixes_of_apple_and_adobe(tmp_path: Path, end: str) -> None:
    for name in ("x.mp4", f"y.{end}"):
        (tmp_path / name).write_bytes(video(frames(), **MP4))
    data = opened("videos", tmp_path)
    assert len(data) == 2 and np.array_equal(data.sample(0).x, data.sample(1).x)


@pytest.mark.parametrize(
    "how", [{}, MP4, {"container": "avi", "codec": "mjpeg", "form": "yuvj420p"}], ids=["mkv", "mp4", "avi"]
)
def test_videos_ignores_a_title_in_another_encoding(tmp_path: Path, how: dict) -> None:
    title = "Café crème".encode("latin-1")
    for name, text in (("a.mkv", b""), ("b.mkv", title)):
        (tmp_path / name).write_bytes(video(frames(), **how, title=text))
    assert title in (tmp_path / "b.mkv").read_bytes()
    data = opened("videos", tmp_path)
    assert np.array_equal(data.sample(0).x, data.sample(1).x)


def test_label_does_not_decode_the_video(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = opened("videos", folder)
    monkeypatch.setattr("harness.data.disk.videos.decoded_frames", lambda file: pytest.fail(file.name))
    assert [label_of(data, i) for i in range(4)] == [0, 0, 0, 1]


def test_videos_raises_for_a_frame_that_the_codec_reports_as_corrupt(tmp_path: Path) -> None:

    content = bytearray(video(frames(height=32, width=32), codec="mpeg4", form="yuv420p"))
    content[len(content) // 2 : len(content) // 2 + 200] = b"\xff" * 200
    (tmp_path / "damaged.mkv").write_bytes(content)
    with pytest.raises(UserError, match=r"damaged\.mkv is damaged"):
        opened("videos", tmp_path)


def test_parquet_raises_an_error_that_names_the_broken_row(tmp_path: Path) -> None:
    good = video(frames())
    for cells, message in (
        ([good, good[:200]], "row 1 (cannot be decoded|has no frames|is cut short)"),
        ([good, None], "row 1: column 'video' has no bytes"),
        ([good, {"bytes": None, "path": "x.mp4"}], "row 1: column 'video' has no bytes"),
        ([good, b""], "row 1 is empty"),
    ):
        with pytest.raises(UserError, match=rf"x\.parquet {message}"):
            opened("videos", parquet(tmp_path / "x.parquet", cells, [0, 0]))
    intact = parquet(tmp_path / "x.parquet", [good], [0]).read_bytes()
    (tmp_path / "x.parquet").write_bytes(intact[: len(intact) // 2])
    with pytest.raises(UserError, match=r"x\.parquet is not a readable parquet file"):
        opened("videos", tmp_path / "x.parquet")
    pq.write_table(pa.table({"video": [1, 2]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x\.parquet has columns video \(int64\)"):
        opened("videos", tmp_path / "x.parquet")


def test_videos_raises_for_unusable_roots(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root = \S+ has no videos, expected a folder of videos"):
        opened("videos", tmp_path)
    with pytest.raises(UserError, match="no such file or folder"):
        opened("videos", tmp_path / "nowhere")
    (tmp_path / "x.txt").write_text("no video")
    with pytest.raises(UserError, match="is a file, expected a folder of videos"):
        opened("videos", tmp_path / "x.txt")
    with pytest.raises(UserError, match=r"data\.frames = 1"):
        opened("videos", tmp_path, frames=1)


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 16])
def test_videos_reads_sprites(shared_data: Path, tmp_path: Path, every: int) -> None:
    clips = pq.read_table(shared_data / "sprites" / "clips.parquet")
    pq.write_table(clips.take(list(range(0, 2592, every))), tmp_path / "clips.parquet")
    data = opened("videos", tmp_path / "clips.parquet", frames=8)
    assert (len(clips), len(data), data.shape, data.classes) == (2592, 2592 // every, (3, 8, 64, 64), 9)
    x = data.sample(100).x
    assert x.shape == data.shape and x.std() > 20
