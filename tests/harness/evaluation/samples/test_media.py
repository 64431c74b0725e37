"""Evaluation of videos and recordings: their readers, their networks, and mismatches of the two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from sweeps.cli.evaluate import evaluate as command
from harness.errors import UserError
from metrics import frechet_distance, load_extractor
from metrics.files.recordings import read_audio
from tests.harness.evaluation.samples.networks import bytes_of, save_means


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLOWRACE_CACHE", str(tmp_path / "cache"))


def run(*words: Any) -> dict[str, Any]:
    return json.loads(
        CliRunner().invoke(command, [*map(str, words), "--json"], catch_exceptions=False).output
    )


def test_videos_are_measured_by_an_image_network(tmp_path: Path) -> None:
    network = f"video:torchscript:{save_means(tmp_path)}"
    fake, real = bytes_of(0, 30, 4, 6, 6, 3), bytes_of(1, 40, 4, 6, 6, 3, top=200)
    np.savez(tmp_path / "fake.npz", arr_0=fake)
    np.save(tmp_path / "real.npy", real)
    call = [tmp_path / "fake.npz", "--against", tmp_path / "real.npy", "--extractor", network, "--frames", 4]
    found = run(*call)["metrics"]["fd:video:torchscript:means"]
    extract = load_extractor(network)
    first, second = (
        extract(torch.from_numpy(np.ascontiguousarray(x.transpose(0, 1, 4, 2, 3)))) for x in (real, fake)
    )
    assert found["mean"] == pytest.approx(frechet_distance(first, second).mean, rel=1e-5)
    assert found["floor"]["n"] == 20 and found["n"] == 30
    with pytest.raises(UserError, match="has 4 frames; a clip needs 16"):
        run(*call[:-2])
    with pytest.raises(UserError, match="holds videos, but the extractor takes images"):
        run(*call[:3], "--extractor", network.removeprefix("video:"))


def test_recordings_are_measured_by_an_audio_network(tmp_path: Path, shared_weights: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    random = np.random.default_rng(0)
    for side, level in (("real", 0.1), ("fake", 0.3)):
        (tmp_path / side).mkdir()
        for i in range(4):
            soundfile.write(tmp_path / side / f"{i}.wav", level * random.normal(size=16_000), 16_000)
    network = f"yamnet:{shared_weights / 'yamnet_audioset.ts'}"
    found = run(tmp_path / "fake", "--against", tmp_path / "real", "--extractor", network)
    extract = load_extractor(network)
    first, second = (extract(read_audio(tmp_path / side, extract.rate)) for side in ("real", "fake"))
    expected = frechet_distance(first, second).mean
    assert found["metrics"]["fd:yamnet"]["mean"] == pytest.approx(expected, rel=1e-4)
    assert found["protocol"]["n_fake"] == len(second)
