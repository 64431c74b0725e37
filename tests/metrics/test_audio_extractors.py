"""Audio extractors: windows, padding and dither; YAMNet's patches; the classifier `local-audio`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from metrics import MetricError, frechet_distance
from metrics.extractors.audio import local as local_audio
from metrics.extractors.audio import yamnet
from metrics.extractors.audio.base import AudioExtractor, Tail, split_options
from metrics.extractors.audio.log_mel import RATE, WINDOW, log_mel
from metrics.extractors.registry import extractor_modality, load_extractor
from metrics.files.recordings import Recording

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning"
)


def recording(samples: int, rate: int = RATE, seed: int = 0, name: str = "a.wav") -> Recording:
    x = 0.1 * np.random.default_rng(seed).standard_normal(samples)
    return Recording(name, rate, x.astype(np.float32))


def cutter(tail: Tail, window: int = 10, hop: int = 4, **fields: object) -> AudioExtractor:
    given = {"dither_dbfs": None, "least": 1, **fields}
    return AudioExtractor(
        "cut", window, "", "", 100, window, hop, tail, device=CPU, network=torch.abs, **given
    )


# Windows


@settings(derandomize=True, max_examples=60, deadline=None)
@given(n=st.integers(2, 60), window=st.integers(1, 12), hop=st.integers(1, 12))
def test_windows_equal_slices_of_a_padded_recording(n: int, window: int, hop: int) -> None:
    """Each tail as in the code it is taken from: slices of a padded recording."""
    x = recording(n, 100)
    padded = np.concatenate([x.samples, np.zeros(100, np.float32)])
    every = [padded[i : i + window] for i in range(0, n, hop)]
    whole = [padded[i : i + window] for i in range(0, n - window + 1, hop)]
    covering = [padded[:window]]
    while (len(covering) - 1) * hop + window < n:
        covering.append(padded[len(covering) * hop :][:window])
    for tail, expected in (("every", every), ("pad", covering), ("drop", whole)):
        if expected:
            found = cutter(tail, window, hop).windows(x)
            np.testing.assert_array_equal(found, expected)
            assert len(found) == cutter(tail, window, hop).count(n)


def test_dither_reaches_the_padding_and_does_not_depend_on_the_batch() -> None:
    extract = cutter("pad", 1000, 500, dither_dbfs=-40.0)
    short, long = recording(300, 100), recording(2200, 100, seed=1)
    (window,) = extract.windows(short)
    assert window[300:].std() == pytest.approx(0.01, rel=0.1)
    together = extract([short, long])
    assert torch.equal(together, torch.cat([extract([short]), extract([long])]))
    assert together.shape == (1 + 4, 1000) and "dither -40 dBFS seed 0" in extract.preprocessing
    other = cutter("pad", 1000, 500, dither_dbfs=-40.0, seed=1)
    assert not torch.equal(other([short]), extract([short]))


def test_invalid_recordings_are_rejected_by_name() -> None:
    silent = Recording("silent.wav", 100, np.zeros(50, np.float32))
    for extract, x, says in (
        (cutter("pad"), recording(50, 8000), r"a\.wav is at 8000 Hz; extractor 'cut' takes 100 Hz"),
        (cutter("drop"), recording(9, 100), r"a\.wav lasts 0\.090 s; .* needs at least 0\.1 s; to pad"),
        (cutter("pad", least=5), recording(4, 100), r"a\.wav lasts 0\.040 s; .* needs at least 0\.05 s$"),
        (cutter("pad"), silent, r"silent\.wav is silent, and extractor 'cut' adds no dither"),
    ):
        with pytest.raises(MetricError, match=says):
            extract([x])
    with pytest.raises(MetricError, match="was given no recordings"):
        cutter("pad")([])
    assert cutter("pad", dither_dbfs=-60.0)([silent]).shape == (11, 10)


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("", (-60.0, "pad", 0)),
        ("?dither=none", (None, "pad", 0)),
        ("?dither=-45.5&seed=7&tail=drop", (-45.5, "drop", 7)),
    ],
)
def test_options_are_parsed(query: str, fields: tuple) -> None:
    assert split_options(f"net.ts{query}", -60.0, "pad") == ("net.ts", fields)


@pytest.mark.parametrize(
    "query", ["dither=3", "dither=loud", "seed=-1", "seed=1.5", "tail=keep", "hop=1", "dither="]
)
def test_invalid_options_are_rejected(query: str) -> None:
    key, _, value = query.partition("=")
    with pytest.raises(MetricError, match=f"audio option {key}={value}: expected dither="):
        split_options(f"net.ts?{query}", None, "pad")


# YAMNet


class Still(nn.Module):
    """A network with the interface of YAMNet's file: the patch's mean of each band, repeated."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(2).flatten(1).repeat(1, 25)[:, :1545]


def test_yamnet_averages_patches_every_half_second(tmp_path: Path) -> None:
    torch.jit.script(Still()).save(str(tmp_path / "still.ts"))
    extract = yamnet.load(f"{tmp_path / 'still.ts'}?dither=none", device=CPU)
    x = recording(WINDOW + 2 * 7680)
    found = extract([x])
    frames = log_mel(torch.from_numpy(x.samples)[None], 1e-3)[0]
    expected = torch.stack([frames[i : i + 96].mean(0) for i in (0, 48, 96)])
    torch.testing.assert_close(found[:, :64], expected, rtol=1e-5, atol=1e-5)
    assert found.shape == (3, 1024) and extract.name == f"yamnet@{extract.sha256[:8]}"
    assert "16000 Hz" in extract.preprocessing and "windows of 0.975 s every 0.48 s" in extract.preprocessing
    assert extract([recording(400)]).shape == (1, 1024)
    with pytest.raises(MetricError, match=r"needs at least 0\.025 s"):
        extract([recording(399)])


def test_yamnet_rejects_other_files(tmp_path: Path) -> None:
    class Small(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(2).flatten(1)

    torch.jit.script(Small()).save(str(tmp_path / "small.ts"))
    with pytest.raises(MetricError, match=r"small\.ts is not YAMNet: it does not return 1024 features"):
        yamnet.load(tmp_path / "small.ts", device=CPU)
    with pytest.raises(MetricError, match=r"cannot read weights .*absent\.ts"):
        yamnet.load(tmp_path / "absent.ts", device=CPU)
    with pytest.raises(MetricError, match="needs a TorchScript file"):
        yamnet.load(None, device=CPU)


# The local classifier


@pytest.mark.slow
def test_local_audio_separates_tones_and_its_distance_rises_with_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tones of three pitches are classified without error, and the distance rises as noise masks them."""
    monkeypatch.setattr("metrics.extractors.local.STEPS", 60)
    random = np.random.default_rng(0)

    def tone(kind: int, level: float = 0.02) -> Recording:
        time = np.arange(9600) / RATE
        x = 0.3 * np.sin(2 * np.pi * (300, 900, 2500)[kind] * random.uniform(0.95, 1.05) * time)
        return Recording("tone", RATE, (x + level * random.standard_normal(9600)).astype(np.float32))

    labels = np.arange(150) % 3
    recordings = [tone(kind) for kind in labels]
    extract = local_audio.load(None, device=CPU, images=recordings, labels=labels, classes=3, cache=tmp_path)
    assert extract.accuracy == 1.0 and (extract.name, extract.dim) == ("local-audio", 64)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    real = extract(recordings)
    rising = [
        float(frechet_distance(real, extract([tone(k, level) for k in labels])))
        for level in (0.02, 0.1, 0.4, 1.6)
    ]
    assert rising == sorted(rising) and rising[1] > 1.5 * rising[0]


def test_local_audio_rejects_weights_and_missing_labels() -> None:
    x = [recording(4000)] * 30
    with pytest.raises(MetricError, match="takes no weights"):
        local_audio.load("net.ts", device=CPU, images=x, labels=np.zeros(30, int), classes=2, cache=None)
    for data in ({"images": x}, {"images": x, "labels": np.zeros(29, int)}):
        with pytest.raises(MetricError, match="one label for each"):
            local_audio.load(None, device=CPU, classes=2, cache=None, **data)


# Loading by name


def test_load_extractor_loads_audio_extractors_by_name(tmp_path: Path) -> None:
    torch.jit.script(Still()).save(str(tmp_path / "still.ts"))
    extract = load_extractor(f"yamnet:{tmp_path / 'still.ts'}?dither=none&tail=drop")
    assert (extract.dither_dbfs, extract.tail, extract.rate) == (None, "drop", 16_000)
    assert load_extractor("yamnet", weights=tmp_path / "still.ts").dither_dbfs == -60.0
    with pytest.raises(MetricError, match="is not the expected file: its sha256 is"):
        load_extractor("yamnet", weights=tmp_path / "still.ts", sha256="00ff")
    for family in ("vggish", "yamnet"):
        assert extractor_modality(family) == "audio"
        with pytest.raises(MetricError, match=f"'{family}' needs"):
            load_extractor(family)
    with pytest.raises(MetricError, match="'local-audio' is trained on recordings"):
        load_extractor("local-audio")
