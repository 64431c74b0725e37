"""The content of a data set is stated before a run and stored in its record."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from harness.config.data_spec import DataSpec
from harness.data.found import found_in
from harness.data.open import open_dataset
from harness.evaluation.samples.sources import open_source
from tests.harness.data.pictures import folder_of, opened, pixels, png
from tests.harness.data.recorded import film, frames, sound, tone, turned, video


def test_line_and_row_state_samples_classes_source_and_skipped_files(tmp_path: Path) -> None:
    folder_of(tmp_path / "train", pixels())
    folder_of(tmp_path / "val", pixels()[:4], pixels()[:4, 0, 0, 0] * 0)
    (tmp_path / ".DS_Store").touch()
    found = found_in(opened("folder", tmp_path))
    assert found.line() == (
        "8 samples, 3 classes: class0 3, class1 2, class2 3 (label source: class folders of train); "
        "8x8 pixels; skipped hidden or left by programs: 1 (.DS_Store); "
        "outside of the split train: 4 (val/class0/000.png, ...)"
    )
    row = found.row()
    assert (row["files"], row["samples"], row["shape"]) == (8, 8, (3, 8, 8))
    assert row["classes"] == {"class0": 3, "class1": 2, "class2": 3}
    assert [skipped["files"] for skipped in row["skipped"]] == [1, 4]


def test_counts_of_generated_data_are_those_of_its_samples() -> None:
    data = open_dataset(DataSpec(name="digits"))
    counts = [count for _, count in found_in(data).classes]
    labels = [data.sample(i).label for i in range(len(data))]
    assert counts == [labels.count(label) for label in range(10)]


def test_sizes_are_those_of_the_files_and_not_of_the_resized_samples(tmp_path: Path) -> None:
    (tmp_path / "small.png").write_bytes(png(pixels(1, 8, 8)[0]))
    (tmp_path / "large.png").write_bytes(png(pixels(1, 12, 24)[0]))
    found = found_in(opened("folder", tmp_path, resolution=8))
    assert "; 8x8 to 24x12 pixels" in found.line()
    assert found.row()["sizes"] == ((8, 8), (24, 12)) and found.row()["shape"] == (3, 8, 8)


def test_mixed_rates_and_turned_videos_are_stated(tmp_path: Path) -> None:
    upright = video(frames(16, 8, 16), "mp4", "mpeg4", "yuv420p")
    slow = film(frames(16, 8, 16), tone(32_000), fps=Fraction(4))
    (tmp_path / "turned.mp4").write_bytes(turned(upright, (0, 1, -1, 0)))
    (tmp_path / "upright.mp4").write_bytes(upright)
    (tmp_path / "slow.mkv").write_bytes(slow)
    found = found_in(opened("videos", tmp_path, resolution=8))
    stated = "8x16 to 16x8 pixels; mixed rates, 4 to 8 frames a second; 1 of 3 videos turned upright"
    assert found.line().endswith(stated)
    assert found.row()["frames_per_second"] == [4, 8] and found.row()["turned_videos"] == 1


def test_sampling_rates_are_those_of_the_files(tmp_path: Path) -> None:
    for rate in (8000, 16_000):
        (tmp_path / f"{rate}.wav").write_bytes(sound(tone(2 * rate, rate), rate))
    found = found_in(opened("sounds", tmp_path))
    assert found.line().endswith("; mixed rates, 8000 to 16000 Hz")


def test_films_have_the_rates_of_picture_and_sound(tmp_path: Path) -> None:
    (tmp_path / "a.mkv").write_bytes(film(frames(), tone(8192)))
    assert (
        found_in(opened("films", tmp_path)).line().endswith("; 8x8 pixels; 15.625 frames a second; 8000 Hz")
    )


@pytest.mark.parametrize("modality", ["video", "audio"])
def test_evaluation_states_the_same_form_as_training(tmp_path: Path, modality: str) -> None:
    if modality == "video":
        upright = video(frames(16, 8, 16), "mp4", "mpeg4", "yuv420p")
        (tmp_path / "a.mp4").write_bytes(turned(upright, (0, 1, -1, 0)))
        (tmp_path / "b.mkv").write_bytes(film(frames(16, 16, 8), tone(32_000), fps=Fraction(4)))
    else:
        (tmp_path / "a.wav").write_bytes(sound(tone()))
        (tmp_path / "b.flac").write_bytes(sound(tone(rate=16_000), 16_000, format="FLAC"))
    (tmp_path / "note.txt").touch()
    trained = found_in(opened({"video": "videos", "audio": "sounds"}[modality], tmp_path))
    evaluated = open_source(str(tmp_path), modality, DataSpec()).found
    assert evaluated is not None
    assert (evaluated.stored, evaluated.skipped) == (trained.stored, trained.skipped)
    assert evaluated.files == trained.files == 2
