"""Recordings: decoding by soundfile and PyAV, resampling, dither, and errors that name the file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics import MetricError
from metrics.files.recordings import Recording, dithered, is_audio, read_audio, resampled

soundfile = pytest.importorskip("soundfile")


def noise(n: int, *channels: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).uniform(-0.8, 0.8, (n, *channels))
    return np.round(x * 2**15) / 2**15  # what 16 bits hold


def wav(x: np.ndarray, rate: int, subtype: str = "PCM_16") -> bytes:
    content = io.BytesIO()
    soundfile.write(content, x, rate, format="WAV", subtype=subtype)
    return content.getvalue()


def tone(hertz: float, rate: int, seconds: float = 1.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


# Reading


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_lossless_files_are_read_unchanged(tmp_path: Path, suffix: str) -> None:
    mono, stereo = noise(700), noise(500, 2, seed=1)
    (tmp_path / "deep").mkdir()
    soundfile.write(tmp_path / f"b{suffix}", mono, 8000)
    soundfile.write(tmp_path / "deep" / f"a{suffix.upper()}", stereo, 8000, format=suffix[1:])
    (tmp_path / "notes.txt").write_text("no recording")
    first, second = read_audio(tmp_path, 8000)
    assert (Path(first.name).name, first.rate) == (f"b{suffix}", 8000) and first.samples.dtype == np.float32
    np.testing.assert_array_equal(first.samples, mono.astype(np.float32))
    np.testing.assert_allclose(second.samples, stereo.mean(axis=1), atol=1e-7)
    assert is_audio(tmp_path) and is_audio(tmp_path / f"b{suffix}") and not is_audio(tmp_path / "notes.txt")


def test_pyav_reads_formats_unknown_to_soundfile(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    x = tone(440, 44_100)
    with av.open(str(tmp_path / "tone.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=44_100, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.stack([x, x]), format="fltp", layout="stereo")
        frame.rate = 44_100
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    (found,) = read_audio(tmp_path, 44_100)
    middle = slice(8000, 36_000)
    spectrum = np.abs(np.fft.rfft(found.samples[middle]))
    assert abs(spectrum.argmax() * 44_100 / 28_000 - 440) < 2
    assert np.std(found.samples[middle]) == pytest.approx(np.std(x), rel=0.02)


def test_parquet_rows_are_read_in_order(tmp_path: Path) -> None:
    parts = [noise(300, seed=seed) for seed in range(70)]
    cells = [{"bytes": wav(x, 8000), "path": None} for x in parts]
    pq.write_table(pa.table({"audio": cells, "label": range(70)}), tmp_path / "x.parquet")
    for path in (tmp_path, tmp_path / "x.parquet"):
        assert is_audio(path)
        found = list(read_audio(path, 8000))
        assert found[69].name.endswith("x.parquet row 69")
        np.testing.assert_array_equal([r.samples for r in found], np.float32(parts))


# Rate and dither


@pytest.mark.parametrize(
    ("rate", "to"), [(8000, 16_000), (44_100, 16_000), (48_000, 16_000), (16_000, 44_100)]
)
def test_resampling_keeps_the_pitch_of_a_tone(rate: int, to: int) -> None:
    found = resampled(Recording("tone", rate, tone(1000, rate)), to)
    assert found.rate == to and len(found.samples) == to
    inner = slice(to // 10, -to // 10)
    np.testing.assert_allclose(found.samples[inner], tone(1000, to)[inner], atol=2e-3)


def test_resampling_removes_frequencies_above_the_lower_rate() -> None:
    found = resampled(Recording("tone", 48_000, tone(11_000, 48_000)), 16_000)
    assert np.abs(found.samples[1000:-1000]).max() < 2e-3


@settings(derandomize=True, max_examples=25, deadline=None)
@given(n=st.integers(1, 3000), rate=st.integers(1000, 48_000), to=st.sampled_from([8000, 16_000, 44_100]))
def test_resampled_length_is_rounded_up(n: int, rate: int, to: int) -> None:
    x = Recording("x", rate, noise(n).astype(np.float32))
    assert len(resampled(x, to).samples) == -(-n * to // rate)


def test_dither_is_white_noise_that_depends_on_the_samples() -> None:
    x = noise(40_000).astype(np.float32)
    added = dithered(x, -60.0).astype(np.float64) - x
    assert np.std(added) == pytest.approx(1e-3, rel=0.02) and abs(added.mean()) < 2e-5
    assert abs(np.corrcoef(added[1:], added[:-1])[0, 1]) < 0.02  # white
    np.testing.assert_array_equal(dithered(x, -60.0), dithered(x.copy(), -60.0))
    assert not np.array_equal(dithered(x, -60.0), dithered(x, -60.0, seed=1))
    other = x.copy()
    other[0] += 0.25
    assert abs(np.corrcoef(dithered(other, -60.0) - other, added)[0, 1]) < 0.02


# Invalid inputs


def test_invalid_recordings_are_rejected_by_name(tmp_path: Path) -> None:
    def refused(name: str, content: bytes, says: str, folder: str) -> None:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.wav").write_bytes(wav(noise(300), 8000))
        (tmp_path / folder / name).write_bytes(content)
        with pytest.raises(MetricError, match=rf"{name.replace('.', '[.]')}.*{says}"):
            list(read_audio(tmp_path / folder, 8000))

    holes = noise(300)
    holes[[7, 9]] = np.nan
    refused(
        "nan.wav", wav(holes, 8000, "FLOAT"), "not finite in 2 of 300 samples; the first is sample 7", "1"
    )
    refused("empty.wav", wav(np.zeros(0), 8000), "holds no samples", "2")
    refused("silent.wav", wav(np.zeros(300), 8000), "is silent: its 300 samples are all 0", "3")
    refused("text.wav", b"no sound at all", "cannot be decoded as audio", "4")
    refused("cut.flac", b"fLaC" + bytes(10), "cannot be decoded as audio", "5")


@pytest.mark.parametrize("total", [0, 701, 2**36 - 1], ids=["unknown", "cut", "damaged"])
def test_flac_is_read_only_when_it_has_the_samples_of_its_header(tmp_path: Path, total: int) -> None:
    """The length has 36 bits up to byte 25 (RFC 9639, 8.2): 0 is unknown, and the maximum needs 256 GiB."""
    x, content = noise(700), io.BytesIO()
    soundfile.write(content, x, 8000, format="FLAC", subtype="PCM_16")
    changed = bytearray(content.getvalue())
    changed[21:26] = (changed[21] >> 4 << 36 | total).to_bytes(5, "big")
    (tmp_path / "x.flac").write_bytes(changed)
    if total:
        with pytest.raises(MetricError, match=f"x.flac is cut short: 700 samples of {total}"):
            next(read_audio(tmp_path, 8000))
        return
    (found,) = read_audio(tmp_path, 8000)
    np.testing.assert_array_equal(found.samples, x.astype(np.float32))


def test_title_in_another_encoding_is_ignored(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    title, x = "Café crème".encode("latin-1"), tone(440, 44_100)
    with av.open(str(tmp_path / "a.m4a"), "w") as container:
        container.metadata["title"] = "?" * len(title)
        stream = container.add_stream("aac", rate=44_100, layout="mono")
        frame = av.AudioFrame.from_ndarray(x[None], format="fltp", layout="mono")
        frame.rate = 44_100
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    whole = (tmp_path / "a.m4a").read_bytes()
    (tmp_path / "b.m4a").write_bytes(whole.replace(b"?" * len(title), title))
    first, second = read_audio(tmp_path, 44_100)
    assert title in (tmp_path / "b.m4a").read_bytes()
    np.testing.assert_array_equal(first.samples, second.samples)


def test_silence_is_read_when_it_is_kept(tmp_path: Path) -> None:
    (tmp_path / "silent.wav").write_bytes(wav(np.zeros(300), 8000))
    (found,) = read_audio(tmp_path, 16_000, silence="keep")
    assert found.silent and len(found.samples) == 600


def test_paths_without_audio_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(MetricError, match="no such file or folder"):
        list(read_audio(tmp_path / "absent", 8000))
    with pytest.raises(MetricError, match="holds no audio; expected files"):
        list(read_audio(tmp_path, 8000))
    pq.write_table(pa.table({"label": [1]}), tmp_path / "x.parquet")
    with pytest.raises(MetricError, match="parquet with a column 'audio'"):
        list(read_audio(tmp_path / "x.parquet", 8000))
    pq.write_table(pa.table({"audio": [{"bytes": None, "path": "a.wav"}]}), tmp_path / "y.parquet")
    with pytest.raises(MetricError, match=r"y\.parquet row 0: column 'audio' has no bytes"):
        list(read_audio(tmp_path / "y.parquet", 8000))
    (tmp_path / "z.parquet").write_text("not parquet")
    with pytest.raises(MetricError, match=r"z\.parquet is not a readable parquet file"):
        is_audio(tmp_path / "z.parquet")


def test_missing_package_is_reported_with_its_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.wav").write_bytes(wav(noise(300), 8000))
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    with pytest.raises(MetricError, match=r"run: pip install 'flowrace\[audio\]'"):
        list(read_audio(tmp_path, 8000))


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        (np.zeros(3), r"samples are float64 of shape \(3,\)"),
        (np.zeros((3, 2), np.float32), r"float32 of shape \(3, 2\)"),
        (np.full(3, np.inf, np.float32), "not finite in 3 of 3"),
    ],
)
def test_recording_rejects_invalid_samples(samples: np.ndarray, says: str) -> None:
    with pytest.raises(MetricError, match=f"clip 5.*{says}"):
        Recording("clip 5", 8000, samples)
