"""The log-mel front end of VGGish and YAMNet against sums in float64 and against transformers' filter
bank."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metrics.extractors.audio.log_mel import BANDS, FFT, FRAME, HOP, PATCH, RATE, WINDOW, log_mel, mel_matrix


def slow(wave: np.ndarray, offset: float) -> np.ndarray:
    """Return the log-mel by its definition: a Fourier sum, triangles by np.interp, and a logarithm."""
    n, k = np.arange(FRAME), np.arange(FFT // 2 + 1)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / FRAME)
    waves = np.exp(-2j * np.pi * np.outer(k, n) / FFT)
    mel = 1127 * np.log(1 + np.array([125.0, 7500.0]) / 700)
    edges = np.linspace(mel[0], mel[1], BANDS + 2)
    bins = 1127 * np.log(1 + k * RATE / FFT / 700)
    bank = [np.interp(bins, edges[b : b + 3], [0, 1, 0]) * (k > 0) for b in range(BANDS)]
    rows = []
    for begin in range(0, len(wave) - FRAME + 1, HOP):
        magnitudes = np.abs(waves @ (window * wave[begin : begin + FRAME].astype(np.float64)))
        rows.append(np.log([triangle @ magnitudes + offset for triangle in bank]))
    return np.array(rows)


@pytest.mark.parametrize("offset", [1e-2, 1e-3])
@pytest.mark.parametrize("samples", [FRAME, FRAME + HOP - 1, FRAME + HOP, 4000])
def test_log_mel_equals_its_definition(offset: float, samples: int) -> None:
    random = np.random.default_rng(samples)
    waves = (random.standard_normal((2, samples)) * [[1e-3], [0.3]]).astype(np.float32)
    found = log_mel(torch.from_numpy(waves), offset)
    assert found.shape == (2, 1 + (samples - FRAME) // HOP, BANDS) and found.dtype == torch.float32
    np.testing.assert_allclose(found, [slow(wave, offset) for wave in waves], atol=2e-5)


def test_silence_gives_the_logarithm_of_the_offset() -> None:
    np.testing.assert_allclose(log_mel(torch.zeros(1, 4000), 1e-3), np.log(1e-3), rtol=1e-6)


def test_filters_equal_transformers() -> None:
    """The triangles are linear in mel, and the constant bin is in none of them."""
    audio_utils = pytest.importorskip("transformers.audio_utils")
    theirs = audio_utils.mel_filter_bank(
        num_frequency_bins=FFT // 2 + 1,
        num_mel_filters=BANDS,
        min_frequency=125.0,
        max_frequency=7500.0,
        sampling_rate=RATE,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
    np.testing.assert_allclose(mel_matrix(), theirs, atol=1e-9)
    assert not mel_matrix()[0].any()


def test_tone_is_loudest_in_its_band() -> None:
    centres = np.linspace(*(1127 * np.log(1 + np.array([125.0, 7500.0]) / 700)), BANDS + 2)[1:-1]
    hertz = 700 * (np.exp(centres / 1127) - 1)
    time = np.arange(2000) / RATE
    tones = torch.from_numpy(np.sin(2 * np.pi * hertz[20::8, None] * time).astype(np.float32))
    loudest = log_mel(tones, 1e-3).mean(1).argmax(1)
    assert loudest.tolist() == list(range(20, BANDS, 8))


def test_patch_has_96_frames() -> None:
    assert WINDOW == 15_600 and log_mel(torch.zeros(1, WINDOW), 1e-2).shape == (1, PATCH, BANDS)
