"""On spoken digits: FAD over YAMNet rises with white noise and with low-pass filtering; dither tames digital
silence."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.signal import butter, sosfiltfilt

from metrics import frechet_distance
from metrics.extractors.audio import yamnet
from metrics.extractors.audio.base import AudioExtractor
from metrics.files.recordings import Recording, read_audio

pytest.importorskip("soundfile")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning"
)


@pytest.fixture(scope="module")
def extract(shared_weights: Path) -> AudioExtractor:
    return yamnet.load(shared_weights / "yamnet_audioset.ts", device=torch.device("cpu"))


@pytest.fixture(scope="module")
def recordings(shared_data: Path) -> list[Recording]:
    """Return all digits and speakers in random order."""
    found = list(read_audio(shared_data / "fsdd", 16_000))
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


def noisy(x: Recording, snr: float, random: np.random.Generator) -> Recording:
    """Add white noise whose power is `snr` dB below the recording's."""
    power = np.mean(x.samples.astype(np.float64) ** 2) * 10 ** (-snr / 10)
    noise = np.sqrt(power) * random.standard_normal(len(x.samples))
    return replace(x, samples=(x.samples + noise).astype(np.float32))


def low_pass(x: Recording, hertz: float) -> Recording:
    filtered = sosfiltfilt(butter(6, hertz, fs=x.rate, output="sos"), x.samples)
    return replace(x, samples=filtered.astype(np.float32))


@pytest.mark.slow
def test_shared_weights_are_the_original_yamnet(extract: AudioExtractor, recordings: list[Recording]) -> None:
    assert (extract.name, extract.dim, extract.rate) == ("yamnet", 1024, 16_000)
    short = min(recordings, key=lambda x: len(x.samples))
    assert extract([short]).shape == (1, 1024)


def curves(extract: AudioExtractor, recordings: list[Recording]) -> tuple[float, list[float], list[float]]:
    """Return distances between the halves of the recordings: unchanged, with white noise, and low-passed."""
    middle = len(recordings) // 2
    reference, fake = extract(recordings[:middle]), recordings[middle:]
    random = np.random.default_rng(1)

    def distance(changed: list[Recording]) -> float:
        return float(frechet_distance(reference, extract(changed)))

    noise = [distance([noisy(x, snr, random) for x in fake]) for snr in (40, 30, 20, 10, 0)]
    dull = [distance([low_pass(x, hertz) for x in fake]) for hertz in (3500, 2500, 2000, 1000, 500)]
    return distance(fake), noise, dull


def rises(values: list[float]) -> bool:
    return all(a < b for a, b in itertools.pairwise(values))


@pytest.mark.slow
def test_distance_rises_with_noise_and_low_pass_filtering(
    extract: AudioExtractor, recordings: list[Recording]
) -> None:
    floor, noise, dull = curves(extract, recordings[:120])
    assert rises(noise) and rises(dull), (floor, noise, dull)
    assert floor < noise[1] and floor < dull[1] and min(noise[-1], dull[-1]) > 5 * floor


@pytest.mark.slow
def test_distance_rises_monotonically_from_the_noise_floor(
    extract: AudioExtractor, recordings: list[Recording]
) -> None:
    floor, noise, dull = curves(extract, recordings)
    assert rises([floor, *noise]) and rises([floor, *dull]), (floor, noise, dull)


def test_dither_reduces_the_effect_of_digital_silence(
    extract: AudioExtractor, recordings: list[Recording]
) -> None:
    """Pauses set to zero on one side only change the distance far more without dither."""
    short = [x for x in recordings if len(x.samples) < 15_000]
    real, fake = short[:60], short[60:120]

    def gated(x: Recording) -> Recording:
        return replace(x, samples=np.where(np.abs(x.samples) < 2e-3, np.float32(0), x.samples))

    def jump(option: AudioExtractor) -> float:
        reference, cut = option(real), option([gated(x) for x in fake])
        return float(frechet_distance(reference, cut)) / float(frechet_distance(reference, option(fake)))

    assert jump(extract) < 1.1 < jump(replace(extract, dither_dbfs=None))
