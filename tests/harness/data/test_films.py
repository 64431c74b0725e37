"""Videos with sound on disk: lossless round trips, synchrony of sound and picture, and errors by file."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("av")
pytest.importorskip("soundfile")

from harness.config.data_spec import DataSpec
from harness.data.dataset import label_of
from harness.data.disk import films
from harness.data.disk.films import Films
from harness.data.log_mel import mel_bytes
from harness.data.open import open_dataset, split
from harness.errors import UserError
from harness.files import stamps
from metrics.files.media import Encoded
from metrics.value import MetricError
from tests.harness.data.pictures import opened, table_of
from tests.harness.data.recorded import CLIPS, film, frames, sound, tone, video
from tests.support.modal import modal
from tests.support.runs import losses, trained

pytestmark = pytest.mark.usefixtures("quick_networks")

EACH = 512
"""Audio samples in a frame of a clip."""
MP4 = {"container": "mp4", "codecs": ("mpeg4", "yuv420p", "aac")}


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.9, 0.9, count)


def pcm(samples: np.ndarray) -> np.ndarray:
    """Return samples after rounding to 16 bits."""
    return (samples * 32767).round() / 32768


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # Without it, files written an instant ago would be surveyed again.
    monkeypatch.setattr(stamps, "TICK_NS", 0)
    """Write films of 16 and 40 frames in one class, and of 20 in another."""
    root = tmp_path / "films"
    for name, count in (("a/one.mkv", 16), ("a/two.MKV", 40), ("b/deep/three.mkv", 20)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(film(frames(count, seed=count), noise(count * EACH, count)))
    return root


def parts(data: Films, index: int) -> tuple[np.ndarray, np.ndarray]:
    x = data.sample(index).x
    pixels, mel = np.split(x, [np.prod(data.shape)])
    return pixels.reshape(data.shape), mel.reshape(data.beside[0])


def test_films_ignores_a_title_in_another_encoding(tmp_path: Path) -> None:
    title = "Café crème".encode("latin-1")
    for name, text in (("a.mkv", b""), ("b.mkv", title)):
        (tmp_path / name).write_bytes(film(frames(16), noise(16 * EACH), title=text))
    assert title in (tmp_path / "b.mkv").read_bytes()
    data = opened("films", tmp_path)
    assert np.array_equal(data.sample(0).x, data.sample(1).x)


def test_label_does_not_decode_the_film(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for the data set of a single part."""
    spec = DataSpec(name="films", root=str(folder), video_weight=0.0)
    films, sound = opened("films", folder), open_dataset(spec)
    monkeypatch.setattr("harness.data.disk.videos.decoded_frames", lambda file: pytest.fail(file.name))
    monkeypatch.setattr("harness.data.disk.sounds.decoded", lambda file: pytest.fail(file.name))
    for data in (films, sound):
        assert [label_of(data, i) for i in range(4)] == [0, 0, 0, 1]


def test_samples_are_clips_with_their_sound(folder: Path) -> None:
    data = opened("films", folder)
    assert (data.modality, data.shape, data.beside) == ("joint", (3, 16, 8, 8), ((32, 64),))
    assert (data.classes, data.class_names) == (2, ["a", "b"])
    assert [data.sample(i).label for i in range(len(data))] == [0, 0, 0, 1]
    for index, (count, begin) in enumerate(((16, 0), (40, 0), (40, 16), (20, 0))):
        pixels, mel = parts(data, index)
        np.testing.assert_array_equal(
            pixels, frames(count, seed=count)[begin : begin + 16].transpose(3, 0, 1, 2)
        )
        wave = pcm(noise(count * EACH, count))[begin * EACH : (begin + 16) * EACH]
        np.testing.assert_array_equal(data.wave(index), wave.astype(np.float32))
        np.testing.assert_array_equal(mel, mel_bytes(wave))
        assert data.sample(index).x.dtype == np.uint8


def test_films_agrees_with_videos_and_sounds(folder: Path, tmp_path: Path) -> None:
    """The parts equal the samples of the data sets of videos and of recordings."""
    for name, count in (("one", 16), ("two", 40)):
        (tmp_path / f"{name}.wav").write_bytes(sound(pcm(noise(count * EACH, count))))
    data, pictures, recordings = (
        opened("films", folder / "a"),
        opened("videos", folder / "a"),
        opened("sounds", tmp_path),
    )
    assert len(data) == len(pictures) == len(recordings) == 3
    for index in range(3):
        pixels, mel = parts(data, index)
        np.testing.assert_array_equal(pixels, pictures.sample(index).x)
        np.testing.assert_array_equal(mel, recordings.sample(index).x)


@pytest.mark.parametrize(
    "fps", [Fraction(125, 16), Fraction(10), Fraction(25), Fraction(30000, 1001), Fraction(125, 4)]
)
def test_clip_frame_is_the_film_frame_shown_at_its_middle(tmp_path: Path, fps: Fraction) -> None:
    """The expected frame is, in exact fractions, the last film frame that has begun by then."""
    count = round(1.3 * fps)
    x = frames(count)
    (tmp_path / "x.mkv").write_bytes(film(x, noise(round(count * 8000 / fps)), fps=fps))
    data = opened("films", tmp_path)
    shown = [max(n for n in range(count) if n / fps <= (k + Fraction(1, 2)) / CLIPS) for k in range(16)]
    np.testing.assert_array_equal(parts(data, 0)[0], x[shown].transpose(3, 0, 1, 2))
    assert len(data) == 1 and len(data.wave(0)) == 16 * EACH


@pytest.mark.parametrize("fps", [CLIPS, Fraction(25), Fraction(30000, 1001)])
@pytest.mark.parametrize("how", [{}, MP4], ids=["lossless", "mp4"])
def test_flash_and_click_coincide_in_every_clip(tmp_path: Path, fps: Fraction, how: dict) -> None:
    """Also at the end of a film, through lossy codecs and at another sampling rate."""
    seconds, rate, flashes = 4, 16_000, (0.3, 1.4, 2.2, 3.5)
    x = np.zeros((round(seconds * fps), 16, 16, 3), np.uint8)
    wave = 1e-3 * noise(seconds * rate)
    for at in flashes:
        x[round(at * fps) : round(at * fps) + math.ceil(fps / 10)] = 255
        begin = round(round(at * fps) / fps * rate)
        wave[begin : begin + 400] += 0.8 * tone(400, rate, 1000)
    (tmp_path / f"x.{'mp4' if how else 'mkv'}").write_bytes(film(x, wave, rate, fps, **how))
    data = opened("films", tmp_path, frames=15)
    assert len(data) == 4
    for index in range(4):
        pixels, mel = parts(data, index)
        flash, click = pixels.mean((0, 2, 3)).argmax(), mel.astype(float).sum(0).argmax() / 4
        assert abs(flash - click) <= 1, (index, flash, click)


def test_sound_keeps_its_time_when_it_begins_late_or_early(tmp_path: Path) -> None:
    """Sound that begins 40 ms late follows 40 ms of silence; sound of three frames before the picture is
    dropped."""
    samples = noise(20 * EACH)
    (tmp_path / "early.mkv").write_bytes(film(frames(17), samples, late=-0.192))
    (tmp_path / "late.mkv").write_bytes(film(frames(17), samples, late=0.04))
    data = opened("films", tmp_path)
    early, late = data.wave(0), data.wave(1)
    np.testing.assert_array_equal(early, pcm(samples)[3 * EACH : 19 * EACH].astype(np.float32))
    np.testing.assert_array_equal(
        late, np.r_[np.zeros(320), pcm(samples)[: 16 * EACH - 320]].astype(np.float32)
    )


def test_stereo_at_another_rate_is_converted_to_the_tone(tmp_path: Path) -> None:
    both = np.stack([tone(16 * 2 * EACH, 16_000)] * 2, 1)
    (tmp_path / "x.mkv").write_bytes(film(frames(), both, 16_000))
    np.testing.assert_allclose(opened("films", tmp_path).wave(0)[100:-100], tone()[100:-100], atol=1e-3)


def test_missing_sound_is_filled_with_silence_up_to_the_tolerance(tmp_path: Path) -> None:
    """The tolerance is one frame and 2 %, at the beginning and at the end."""
    short = EACH + int(0.02 * 16 * EACH)
    (tmp_path / "x.mkv").write_bytes(film(frames(), noise(16 * EACH - short)))
    wave = opened("films", tmp_path).wave(0)
    assert not wave[-short:].any() and np.count_nonzero(wave[:-short]) > 7000
    (tmp_path / "x.mkv").write_bytes(film(frames(), noise(16 * EACH - short - 50)))
    with pytest.raises(UserError, match=r"x\.mkv has sound for 0\.93 s of 1\.02 s"):
        opened("films", tmp_path)


def test_films_obeys_frames_resolution_and_channels(folder: Path) -> None:
    data = opened("films", folder, frames=4, resolution=4, channels=1)
    assert (data.shape, data.beside, len(data)) == ((1, 4, 4, 4), ((32, 16),), 4 + 10 + 5)
    assert data.sample(0).x.shape == (64 + 512,)
    films = (range(4), range(4, 14), range(14, 19))
    assert [len({data.key(i) for i in clips}) for clips in films] == [1, 1, 1]
    held_out = set(split(data, 0.01).held_out)
    assert all(len({i in held_out for i in clips}) == 1 for clips in films)


def test_parquet_and_folder_are_the_same_data(folder: Path, tmp_path: Path) -> None:
    cells = [(folder / name).read_bytes() for name in ("a/one.mkv", "a/two.MKV", "b/deep/three.mkv")]
    pq.write_table(table_of(cells, [0, 0, 1], column="video"), tmp_path / "x.parquet")
    rows, files = opened("films", tmp_path / "x.parquet"), opened("films", folder)
    assert rows.fingerprint == files.fingerprint and len(rows) == len(files)
    for index in range(len(files)):
        np.testing.assert_array_equal(rows.sample(index).x, files.sample(index).x)
    pq.write_table(table_of([cells[0], video(frames())], [0, 0], column="video"), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x\.parquet row 1 has no audio stream"):
        opened("films", tmp_path / "x.parquet")


def _long(count: int = 17, **how: object) -> bytes:
    return film(frames(count), noise(count * EACH), **how)


BROKEN = {
    "mute.mkv": (lambda: video(frames()), "has no audio stream"),
    "blind.mp4": (lambda: sound(tone()), "has no video stream"),
    "moving.gif": (lambda: video(frames(), "gif", "gif", "rgb8"), "has no audio stream"),
    "silent.mkv": (lambda: film(frames(), np.zeros(16 * EACH)), "is silent"),
    "five.mkv": (lambda: film(frames(), np.stack([tone()] * 5, 1)), "has 5 channels, expected at most 2"),
    "half.mkv": (lambda: film(frames(), noise(8 * EACH)), r"has sound for 0\.51 s of 1\.02 s"),
    "late.mkv": (lambda: _long(late=0.5), r"has sound for 0\.59 s of 1\.09 s"),
    "gone.mkv": (lambda: film(frames(), noise(16 * EACH), late=5.0), r"has sound for 0\.00 s of 1\.02 s"),
    "gap.mkv": (lambda: _long(gap=(30, 0.3)), r"has gaps in its sound: 1\.09 s of sound in 1\.39 s"),
    "short.mkv": (
        lambda: _long(5),
        r"lasts 0\.32 s, but a clip of 16 frames takes 1\.02 s; remove it, .*data\.frames=5",
    ),
    "still.mkv": (lambda: _long(1), "has no timestamps for its frames"),
    "cut.mkv": (lambda: _long()[:9000], r"is cut short: 0\.\d\d s of 1\.09 s"),
    "cut.mp4": (lambda: _long(**MP4)[:3000], "cannot be decoded as video"),
    "empty.mp4": (lambda: b"", "is empty: 0 bytes"),
    "text.mp4": (lambda: b"no film at all", "cannot be decoded as video"),
    "tiny.mkv": (
        lambda: film(frames(height=1, width=1), noise(16 * EACH)),
        "is 1x1 pixels, expected at least 8x8",
    ),
    "wide.mkv": (lambda: film(frames(width=12), noise(16 * EACH)), r"is 12x8 pixels, but \S*one.mkv is 8x8"),
    "old.wmv": (lambda: b"ASF", r"\.wmv films are not supported; convert them to MP4"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_films_raises_an_error_that_names_the_file_when_broken(folder: Path, name: str) -> None:
    content, message = BROKEN[name]
    (folder / "b" / name).write_bytes(content())
    with pytest.raises(UserError, match=rf"{name}.* ?({message})") as raised:
        opened("films", folder)
    assert "\n" not in str(raised.value)


def test_films_decodes_each_clip_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips and sound are cached in memory, and the survey is cached between starts."""
    data = opened("films", folder)
    first = [data.sample(i).x for i in range(len(data))]
    for module in ("videos.decoded_frames", "sounds.decoded"):
        monkeypatch.setattr(f"harness.data.disk.{module}", lambda file: pytest.fail(file.name))
    for before, again in zip(first, [data.sample(i).x for i in range(len(data))], strict=True):
        np.testing.assert_array_equal(before, again)
    assert opened("films", folder).fingerprint == data.fingerprint


def test_run_trains_on_films_or_on_their_video_only(folder: Path, tmp_path: Path) -> None:

    root = (f"data.root={folder}", "data.name=films", "data.frames=4", "data.held_out=0.0", "eval.samples=8")
    fewer = ("train.steps=2", "eval.every=2", "eval.metrics=[]")
    record = trained(modal("joint", *root, *fewer), tmp_path)
    assert record.status == "done" and len(losses(record)) == 2
    video_only = modal(
        "joint", *root, "data.audio_weight=0.0", "data.video_weight=1.0", "eval.metrics=['fd:video:local']"
    )
    assert open_dataset(video_only.data).modality == "video"


def test_film_whose_sound_cannot_be_decoded_again_is_refused_by_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise MetricError("a.mkv has more samples than a bound")

    monkeypatch.setattr(films, "sounds_of", fails)
    file = next(path for path in sorted(folder.rglob("*")) if path.is_file())
    with pytest.raises(UserError, match=r"a\.mkv has more samples than a bound; replace or remove it"):
        films.survey_film(Encoded(str(file), file))
