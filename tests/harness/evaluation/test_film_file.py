"""Films with sound: what PyAV decodes from the file is what was drawn, in time."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

from harness.data.dataset import shapes_of
from harness.data.log_mel import PER_FRAME, SAMPLES_PER_FRAME, mel_bytes
from harness.errors import UserError
from harness.evaluation import film_file
from harness.evaluation.film_file import PAUSE, film
from metrics.domain.audio_video_sync import clicks, impacts, synchrony
from tests.harness.data.pictures import opened

av = pytest.importorskip("av")
FRAMES, CLIPS = 12, 3


def decoded(content: bytes) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Return frames uint8 (T, H, W, 3), the wave, and the metadata of a film."""
    with av.open(io.BytesIO(content)) as file:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
        assert float(file.streams.video[0].average_rate) == 15.625
    with av.open(io.BytesIO(content)) as file:
        wave = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
        return frames, wave, dict(file.metadata)


def test_film_shows_every_video_in_time_with_its_sound() -> None:
    data = opened("bounce", "", frames=FRAMES)
    x = np.stack([data.sample(index).x for index in range(CLIPS)])
    captions = ["a zero bounces", "家", "a two bounces twice"]
    frames, wave, metadata = decoded(film(x, shapes_of(data), captions))
    length = FRAMES + PAUSE
    assert frames.shape == (CLIPS * length, 256, 256, 3) and json.loads(metadata["comment"]) == captions
    small = frames.reshape(CLIPS, length, 16, 16, 16, 16, 3).astype(float).mean((3, 5, 6))
    video = x[:, : FRAMES * 256].reshape(CLIPS, FRAMES, 16, 16)
    assert np.abs(small[:, :FRAMES] - video).max() < 8
    sounds = wave[: CLIPS * length * SAMPLES_PER_FRAME].reshape(CLIPS, -1)[:, : FRAMES * SAMPLES_PER_FRAME]
    heard = clicks(mel_bytes(sounds.astype(np.float64)), per_frame=PER_FRAME)
    seen = impacts(np.round(small[:, :FRAMES]).astype(np.uint8))
    assert synchrony(seen, heard, frames=FRAMES).share.mean == 1
    true = [data.impacts(index) for index in range(CLIPS)]
    assert synchrony(true, heard, frames=FRAMES, within=0.5).share.mean == 1


def test_film_of_colour_videos_has_even_sides() -> None:
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (1, 3 * 2 * 5 * 7 + 32 * 2 * PER_FRAME), dtype=np.uint8)
    frames, _, metadata = decoded(film(x, [(3, 2, 5, 7), (32, 2 * PER_FRAME)]))
    height, width = frames.shape[1:3]
    assert height % 2 == width % 2 == 0 and height * 7 == width * 5 and height >= 256
    assert "comment" not in metadata


def test_film_without_pyav_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, extra: str) -> None:
        raise film_file.MetricError(f"the package '{name}' is not installed; run: pip install '{extra}'")

    monkeypatch.setattr(film_file, "package", missing)
    with pytest.raises(UserError, match="the package 'av' is not installed; run: pip install"):
        film(np.zeros((1, 2 * 16 + 32 * 8), np.uint8), [(1, 2, 4, 4), (32, 8)])
