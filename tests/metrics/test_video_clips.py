"""Readers of videos: lossless files and arrays are read unchanged; clips depend only on seed and number."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from metrics import MetricError
from metrics.files.videos import is_video, read_videos

av = pytest.importorskip("av")


def pixels(frames: int, height: int = 6, width: int = 8, seed: int = 0) -> np.ndarray:
    """(T, H, W, 3), each frame with its number in its first corner."""
    x = np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    x[:, 0, 0] = np.arange(frames)[:, None]
    return x


def encode(frames: np.ndarray, container: str = "matroska", codec: str = "ffv1", form: str = "bgr0") -> bytes:
    content = io.BytesIO()
    with av.open(content, "w", format=container) as file:
        stream = file.add_stream(codec, rate=8)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], form
        for x in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(x, format="rgb24")):
                file.mux(packet)
        for packet in stream.encode(None):
            file.mux(packet)
    return content.getvalue()


def numbers(clips: torch.Tensor) -> np.ndarray:
    """Return the frame numbers (B, T) of clips within their videos."""
    return clips[:, :, 0, 0, 0].numpy()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Videos of 5, 12 and 20 frames, in two folders."""
    (tmp_path / "videos" / "more").mkdir(parents=True)
    for name, frames in (("b.mkv", 12), ("a.MKV", 5), ("more/c.mkv", 20)):
        (tmp_path / "videos" / name).write_bytes(encode(pixels(frames, seed=frames)))
    (tmp_path / "videos" / "notes.txt").write_text("no video")
    return tmp_path / "videos"


# Reading


def test_lossless_files_are_read_unchanged(folder: Path) -> None:
    (clips,) = read_videos(folder, 5, start="first")
    assert clips.dtype == torch.uint8 and clips.shape == (3, 5, 3, 6, 8) and clips.is_contiguous()
    for clip, frames in zip(clips, (5, 12, 20), strict=True):
        np.testing.assert_array_equal(clip.permute(0, 2, 3, 1), pixels(frames, seed=frames)[:5])
    assert is_video(folder) and is_video(folder / "b.mkv") and not is_video(folder / "notes.txt")


@pytest.mark.parametrize(
    ("container", "codec", "form"),
    [("mp4", "mpeg4", "yuv420p"), ("gif", "gif", "rgb8"), ("avi", "mjpeg", "yuvj420p")],
)
def test_lossy_containers_keep_number_and_order_of_frames(
    tmp_path: Path, container: str, codec: str, form: str
) -> None:
    """Frames of one colour are recognised after a lossy codec."""
    flat = np.repeat(np.arange(20, 220, 40, dtype=np.uint8), 16 * 16 * 3).reshape(5, 16, 16, 3)
    (tmp_path / f"x.{container}").write_bytes(encode(flat, container, codec, form))
    (clips,) = read_videos(tmp_path, 5)
    np.testing.assert_allclose(clips.float().mean((0, 2, 3, 4)), flat.mean((1, 2, 3)), atol=20)


def test_parquet_rows_are_read_in_order(tmp_path: Path) -> None:
    cells = [{"bytes": encode(pixels(3, seed=row)), "path": None} for row in range(5)]
    pq.write_table(pa.table({"video": cells, "label": range(5)}), tmp_path / "x.parquet")
    for path in (tmp_path, tmp_path / "x.parquet"):
        assert is_video(path)
        clips = torch.cat(list(read_videos(path, 3, batch=2)))
        np.testing.assert_array_equal(clips.permute(0, 1, 3, 4, 2), [pixels(3, seed=row) for row in range(5)])


@pytest.mark.parametrize("name", ["x.npy", "arr_0.npz", "own.npz"])
@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_are_read_with_stride(tmp_path: Path, name: str, channels: int) -> None:
    x = np.stack([pixels(7, seed=seed)[..., :channels] for seed in range(5)])
    if name.endswith("npy"):
        np.save(tmp_path / name, x)
    else:
        np.savez_compressed(tmp_path / name, **{name[:-4]: x})
    assert is_video(tmp_path / name)
    batches = list(read_videos(tmp_path / name, 3, batch=2, stride=3, start="first"))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    np.testing.assert_array_equal(torch.cat(batches).permute(0, 1, 3, 4, 2), x[:, ::3])


# Clips


def test_clip_depends_only_on_seed_and_number(folder: Path) -> None:
    def drawn(**given: int) -> list:
        return np.concatenate([numbers(c) for c in read_videos(folder, 3, stride=2, **given)]).tolist()

    first = drawn(seed=4)
    assert all(b - a == c - b == 2 for a, b, c in first)
    assert first == drawn(seed=4, batch=1)
    assert len({str(drawn(seed=seed)) for seed in range(5)}) == 5
    assert drawn(seed=0)[0][0] == 0  # a clip takes all five frames of the first


def test_clip_starts_are_uniform(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.broadcast_to(pixels(10, 1, 1), (3000, 10, 1, 1, 3)))
    clips = torch.cat(list(read_videos(tmp_path / "x.npy", 6, batch=500)))
    counts = np.bincount(numbers(clips)[:, 0])
    assert len(counts) == 5 and chisquare(counts).pvalue > 0.01


def test_short_videos_are_rejected_or_dropped(folder: Path) -> None:
    with pytest.raises(MetricError, match=r"a\.MKV has 5 frames; a clip needs 12"):
        list(read_videos(folder, 12))
    dropped: list[str] = []
    (clips,) = read_videos(folder, 12, dropped=dropped)
    assert len(clips) == 2 and [Path(name).name for name in dropped] == ["a.MKV"]
    with pytest.raises(
        MetricError, match=r"no video of .* has the 21 frames that a clip needs; 3 are shorter"
    ):
        list(read_videos(folder, 21, dropped=[]))
    (folder / "one.mkv").write_bytes(encode(pixels(1)))
    with pytest.raises(MetricError, match=r"one\.mkv has 1 frame; a clip needs 2"):
        list(read_videos(folder, 2))


# Invalid inputs


def test_undecodable_videos_are_rejected_by_name(folder: Path) -> None:
    whole = (folder / "b.mkv").read_bytes()
    for content, says in (
        (b"no video at all", "cannot be decoded as video"),
        (whole[:40], "cannot be decoded"),
    ):
        (folder / "c.mkv").write_bytes(content)
        with pytest.raises(MetricError, match=rf"c\.mkv {says}"):
            list(read_videos(folder, 2))
    (folder / "c.mkv").write_bytes(encode(pixels(5, width=10)))
    with pytest.raises(
        MetricError, match=r"c\.mkv has frames of 6x10x3, .*a\.MKV has 6x8x3; give videos of one size"
    ):
        list(read_videos(folder, 2))


def test_recording_is_rejected_as_a_video(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "x.mp4", np.zeros(100), 8000, format="WAV")
    with pytest.raises(MetricError, match=r"x\.mp4 has no video stream"):
        list(read_videos(tmp_path, 2))


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((2, 4, 6, 6, 3), np.float32), "float32; give bytes"),
        (np.zeros((2, 6, 6, 3), np.uint8), r"has shape \(2, 6, 6, 3\); expected \(N, T, H, W, C\)"),
        (np.zeros((2, 4, 6, 6, 4), np.uint8), "with 1 or 3 channels"),
        (np.zeros((0, 4, 6, 6, 3), np.uint8), r"has shape \(0,"),
        (np.array([{}], object), "object; give bytes"),
    ],
)
def test_invalid_arrays_are_rejected(tmp_path: Path, array: np.ndarray, says: str) -> None:
    np.save(tmp_path / "x.npy", array)
    np.savez(tmp_path / "x.npz", array)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(MetricError, match=rf"{name.replace('.', '[.]')} .*{says}"):
            list(read_videos(tmp_path / name, 2))


def test_is_video_is_false_for_other_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(3), sigma=np.eye(3))
    np.savez(tmp_path / "images.npz", mu=np.zeros(3), arr_0=np.zeros((2, 4, 4, 3), np.uint8))
    (tmp_path / "text.npy").write_text("no array")
    assert not any(is_video(file) for file in tmp_path.iterdir())


def test_invalid_files_are_rejected(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=np.zeros(2), b=np.zeros(3))
    (tmp_path / "text.npz").write_text("no array")
    (tmp_path / "text.npy").write_text("no array")
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "x.parquet")
    for name, says in (
        ("two.npz", "holds a, b; expected the array arr_0"),
        ("text.npz", "is not a complete numpy file"),
        ("text.npy", "is not a complete numpy file"),
        ("absent.npy", "is not a complete numpy file: .*No such file"),
        ("absent", "no such file or folder"),
        ("x.parquet", "parquet with a column 'video'"),
    ):
        with pytest.raises(MetricError, match=says):
            list(read_videos(tmp_path / name, 2))
    (tmp_path / "empty").mkdir()
    with pytest.raises(MetricError, match="empty holds no video; expected files"):
        list(read_videos(tmp_path / "empty", 2))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(["x.npy", "plain.npz", "packed.npz"]), st.data())
def test_damaged_array_is_read_or_rejected_by_name(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    """The file is truncated anywhere, or some bytes are changed."""
    write = {"x.npy": np.save, "plain.npz": np.savez, "packed.npz": np.savez_compressed}[name]
    whole = io.BytesIO()
    write(whole, np.stack([pixels(4, seed=seed) for seed in range(3)]))
    content = bytearray(whole.getvalue())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(1, len(content)))]
    file = tmp_path_factory.getbasetemp() / name
    file.write_bytes(content)
    is_video(file)
    try:
        list(read_videos(file, 4))
    except MetricError as error:
        assert name in str(error)


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_truncated_array_is_rejected(tmp_path: Path, name: str) -> None:
    (np.save if name == "x.npy" else np.savez)(tmp_path / name, np.stack([pixels(4)]))
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-100])
    with pytest.raises(MetricError, match=rf"{name} is not a complete numpy file"):
        list(read_videos(tmp_path / name, 4))


def test_title_in_another_encoding_is_ignored(folder: Path) -> None:
    title = "Café crème".encode("latin-1")
    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as file:
        file.metadata["title"] = "?" * len(title)
        stream = file.add_stream("mpeg4", rate=8)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "yuv420p"
        for x in pixels(5, 16, 16):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(x, format="rgb24")))
        file.mux(stream.encode(None))
    first, second = folder / "x.mp4", folder / "y.mp4"
    first.write_bytes(content.getvalue())
    second.write_bytes(content.getvalue().replace(b"?" * len(title), title))
    assert title in second.read_bytes()
    one, other = (next(read_videos(file, 5)) for file in (first, second))
    assert torch.equal(one, other)


@pytest.mark.parametrize("setting", [{"frames": 0}, {"stride": 0}, {"batch": 0}, {"start": "last"}])
def test_invalid_clip_settings_are_rejected(folder: Path, setting: dict) -> None:
    with pytest.raises(MetricError, match="expected numbers of 1 or more and a start of random or first"):
        list(read_videos(folder, **{"frames": 2, **setting}))


def test_missing_package_is_reported_with_its_install_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MetricError, match=r"run: pip install 'flowrace\[video\]'"):
        list(read_videos(folder, 2))


def test_files_are_closed_after_reading(folder: Path) -> None:
    """The number of open files does not grow, although each video is read only as far as its clip."""
    limit = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else None
    if limit is None:
        pytest.skip("counts open files in /proc")
    for _ in itertools.repeat(None, 5):
        list(read_videos(folder, 2, start="first"))
    assert len(list(Path("/proc/self/fd").iterdir())) <= limit + 2
