"""Recordings on disk: windows, labels, and errors that name the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("av")
pytest.importorskip("soundfile")

from harness.data.dataset import label_of
from harness.data.log_mel import mel_bytes
from harness.data.open import split
from harness.errors import UserError
from harness.files import stamps
from tests.harness.data.pictures import opened, table_of
from tests.harness.data.recorded import frames, sound, tone, video


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # Without it, files written an instant ago would be surveyed again.
    monkeypatch.setattr(stamps, "TICK_NS", 0)
    root = tmp_path / "sounds"
    for name, samples in (
        ("high/a.wav", tone(8192, hertz=880)),
        ("low/b.flac", tone(20_000)),
        ("low/c.wav", tone(3000)),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(sound(samples, format="FLAC" if name.endswith("flac") else "WAV"))
    return root


def test_samples_are_windows_end_to_end(folder: Path) -> None:
    data = opened("sounds", folder)
    assert (data.modality, data.shape, data.classes, data.class_names) == (
        "audio",
        (32, 64),
        2,
        ["high", "low"],
    )
    assert [data.sample(i).label for i in range(len(data))] == [0, 1, 1, 1]
    np.testing.assert_allclose(data.wave(2), tone(20_000)[8192:16_384], atol=2**-15)
    np.testing.assert_allclose(data.wave(3), np.pad(tone(3000), (0, 5192)), atol=2**-15)
    for index in range(4):
        x = data.sample(index).x
        assert x.dtype == np.uint8 and np.array_equal(x, mel_bytes(data.wave(index)))
    held_out = set(split(data, 0.5).held_out)
    assert (1 in held_out) == (2 in held_out)


def test_stereo_at_16_khz_is_converted_to_mono_at_8_khz(tmp_path: Path) -> None:

    both = np.stack([tone(16_384, 16_000), tone(16_384, 16_000)], 1)
    (tmp_path / "x.wav").write_bytes(sound(both, 16_000))
    data = opened("sounds", tmp_path)
    np.testing.assert_allclose(data.wave(0)[100:-100], tone()[100:-100], atol=1e-3)


def test_sounds_obeys_frames(folder: Path) -> None:
    data = opened("sounds", folder, frames=16)
    assert data.shape == (32, 16) and len(data) == 4 + 9 + 1


def test_parquet_and_folder_are_the_same_data(folder: Path, tmp_path: Path) -> None:
    cells = [(folder / name).read_bytes() for name in ("high/a.wav", "low/b.flac", "low/c.wav")]
    pq.write_table(table_of(cells, [0, 1, 1], column="audio"), tmp_path / "x.parquet")
    assert opened("sounds", tmp_path / "x.parquet").fingerprint == opened("sounds", folder).fingerprint


def test_labels_come_from_metadata_csv_which_must_match_the_files(folder: Path) -> None:
    (folder / "metadata.csv").write_text(
        "file_name,label,tune\nlow/c.wav,10,x\nhigh/a.wav,9,y\nlow/b.flac,10,y\n"
    )
    data = opened("sounds", folder)
    assert data.class_names == ["9", "10"] and [data.sample(i).label for i in range(4)] == [1, 0, 1, 1]
    assert opened("sounds", folder, label_key="tune").class_names == ["x", "y"]
    for rows, message in (
        ("low/c.wav,1\nhigh/a.wav,1\n", r"b\.flac is not listed in metadata\.csv"),
        ("low/c.wav,1\nhigh/a.wav,1\nlow/b.flac,1\nx.wav,1\n", r"lists x\.wav, which does not exist"),
        ("low/c.wav,1\nhigh/a.wav,1\nlow/b.flac,1\nlow/c.wav,2\n", r"lists low/c\.wav, .*is listed twice"),
        ("low/c.wav,1\nhigh/a.wav,\nlow/b.flac,1\n", "lacks a value of 'label' in some row"),
        ("", "lacks a value of 'file_name'"),
    ):
        (folder / "metadata.csv").write_text("file_name,label\n" + rows)
        with pytest.raises(UserError, match=message):
            opened("sounds", folder)


def _of_total(samples: int) -> bytes:
    """Return a FLAC of 8,192 samples with another total in its header, 36 bits up to byte 25 (RFC 9639)."""
    content = bytearray(sound(tone(), format="FLAC"))
    assert int.from_bytes(content[21:26], "big") % 2**36 == 8192
    content[21:26] = (content[21] >> 4 << 36 | samples).to_bytes(5, "big")
    return bytes(content)


def _nan() -> bytes:
    return sound(np.r_[tone(), np.nan].astype(np.float32), subtype="FLOAT")


BROKEN = {
    "zero.wav": (lambda: sound(tone(0)), "holds no samples"),
    "empty.wav": (lambda: b"", "is empty: 0 bytes"),
    "cut.wav": (lambda: sound(tone())[:9000], "is cut short: 9000 bytes of 16428"),
    "header.wav": (lambda: sound(tone())[:20], "is cut short: 20 bytes"),
    "cut.flac": (lambda: sound(tone(), format="FLAC")[:60], "cannot be decoded|holds no samples"),
    "five.wav": (lambda: sound(np.stack([tone()] * 5, 1)), "has 5 channels, expected at most 2; mix it down"),
    "nan.wav": (_nan, "is not finite in 1 of 8193 samples"),
    "silent.wav": (lambda: sound(np.zeros(8192)), "is silent"),
    "text.wav": (lambda: b"no sound at all", "cannot be decoded as audio"),
    "picture.m4a": (lambda: video(frames(), "mp4", "mpeg4", "yuv420p"), "has no audio stream"),
    "damaged.flac": (lambda: _of_total(2**36 - 1), f"is cut short: 8192 samples of {2**36 - 1}"),
    **{
        f"cut{number}.{form.lower()}": (
            lambda form=form: sound(tone(), format=form)[:9000],
            "is cut short: 9000 bytes of 16",
        )
        for number, form in enumerate(("AIFF", "W64"))
    },
    "long.wav": (lambda: sound(tone(), format="RF64")[:9000], "is cut short: 9000 bytes of 16"),
    **{
        f"old.{end}": (lambda: b"", rf"\.{end} recordings are not supported; convert them to WAV")
        for end in ("wma", "webm", "mka", "caf", "au")
    },
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_sounds_raises_an_error_that_names_the_file_when_broken(folder: Path, name: str) -> None:
    content, message = BROKEN[name]
    (folder / "low" / name).write_bytes(content())
    with pytest.raises(UserError, match=rf"{name}.* ?({message})") as raised:
        opened("sounds", folder)
    assert "\n" not in str(raised.value)


def test_flac_with_unknown_total_is_read(tmp_path: Path) -> None:
    """A FLAC that was written to a pipe has a total of 0."""
    (tmp_path / "x.flac").write_bytes(_of_total(0))
    np.testing.assert_allclose(opened("sounds", tmp_path).wave(0), tone(), atol=2**-15)


ENDINGS = {
    "wave": "WAV",
    "w64": "W64",
    "aif": "AIFF",
    "aifc": "AIFF",
    "oga": "OGG",
    "mp2": "MP3",
    "m4b": "WAV",
}


@pytest.mark.parametrize("end", ENDINGS)
def test_every_supported_suffix_is_read(folder: Path, end: str) -> None:
    (folder / "low" / f"d.{end}").write_bytes(sound(tone(), format=ENDINGS[end], subtype=None))
    data = opened("sounds", folder)
    assert len(data) == 5
    # MP3 is lossy.
    np.testing.assert_allclose(data.wave(4)[500:-500], tone()[500:-500], atol=0.1)


def test_metadata_csv_may_begin_with_a_byte_order_mark(folder: Path) -> None:
    """Excel writes UTF-8 with a byte order mark."""
    rows = "file_name,label\nlow/c.wav,é\nhigh/a.wav,a\nlow/b.flac,é\n"
    (folder / "metadata.csv").write_text(rows, encoding="utf-8-sig")
    assert opened("sounds", folder).class_names == ["a", "é"]


@pytest.mark.parametrize("kind", ["sounds", "videos", "films", "folder"])
def test_broken_link_raises_an_error_that_names_it(tmp_path: Path, kind: str) -> None:
    end = {"sounds": "wav", "folder": "png"}.get(kind, "mp4")
    (tmp_path / f"gone.{end}").symlink_to("nowhere")
    with pytest.raises(UserError, match=rf"cannot read \S*gone\.{end}: No such file"):
        opened(kind, tmp_path)


def test_label_does_not_decode_the_recording(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = opened("sounds", folder)
    monkeypatch.setattr("harness.data.disk.sounds.decoded", lambda file: pytest.fail(file.name))
    assert [label_of(data, i) for i in range(4)] == [0, 1, 1, 1]


def test_parquet_raises_an_error_that_names_the_broken_row(tmp_path: Path) -> None:
    for cell, message in (
        (b"garbage", "row 1 cannot be decoded"),
        (None, "row 1: column 'audio' has no bytes"),
    ):
        pq.write_table(table_of([sound(tone()), cell], [0, 0], column="audio"), tmp_path / "x.parquet")
        with pytest.raises(UserError, match=rf"x\.parquet {message}"):
            opened("sounds", tmp_path / "x.parquet")


def test_survey_is_cached_between_starts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened("sounds", folder)
    monkeypatch.setattr("harness.data.disk.sounds.decoded", lambda file: pytest.fail(file.name))
    assert opened("sounds", folder).fingerprint == first.fingerprint


def test_sounds_reads_spoken_digits(shared_data: Path) -> None:
    data = opened("sounds", shared_data / "fsdd" / "recordings.parquet")
    assert (data.shape, data.classes) == ((32, 64), 10)
    # Two of 3,000 recordings are longer than two windows.
    assert len(data) == 3000 + 2
    assert {data.sample(i).label for i in range(0, 3000, 100)} == set(range(10))
