"""CLAP against transformers' network on windows cut by hand, and Microsoft's CLAP as a TorchScript file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metrics import MetricError, load_extractor
from metrics.extractors.audio import clap
from metrics.extractors.registry import extractor_modality
from metrics.files.recordings import Recording

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning"
)


def recording(samples: int, rate: int) -> Recording:
    x = 0.1 * np.random.default_rng(0).standard_normal(samples)
    return Recording("a.wav", rate, x.astype(np.float32))


@pytest.fixture(scope="module")
def clap_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny random network of LAION's architecture."""
    transformers = pytest.importorskip("transformers")
    text = {
        "vocab_size": 9,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    audio = {
        "patch_embeds_hidden_size": 8,
        "hidden_size": 16,
        "depths": [1, 1],
        "num_attention_heads": [1, 2],
    }
    config = transformers.ClapConfig(
        text_config=text, audio_config={**audio, "num_hidden_layers": 2, "num_classes": 3}, projection_dim=6
    )
    folder = tmp_path_factory.mktemp("clap")
    torch.manual_seed(0)
    transformers.ClapModel(config).save_pretrained(folder)
    transformers.ClapFeatureExtractor(truncation="rand_trunc").save_pretrained(folder)
    return folder


def test_clap_equals_transformers_on_fadtks_windows(clap_folder: Path) -> None:
    import transformers

    extract = clap.load_laion_music(clap_folder, device=CPU)
    x = recording(11 * 48_000 + 24_000, 48_000)
    # At an amplitude of a few 16-bit steps, truncation differs from rounding.
    x = Recording(x.name, x.rate, x.samples / 1000)
    found = extract([x])
    model = transformers.ClapModel.from_pretrained(clap_folder).eval()
    front = transformers.ClapFeatureExtractor.from_pretrained(clap_folder)
    sixteen = np.trunc(x.samples * np.float32(32767)) / np.float32(32767)
    assert found.shape == (12, 6) and extract.dim == 6 and extract.name == "clap-laion-music"
    for second in (0, 11):
        window = np.zeros(480_000, np.float32)
        part = sixteen[second * 48_000 :][:480_000]
        window[: len(part)] = part
        mel = front._np_extract_fbank_features(window, front.mel_filters_slaney)
        pixels = torch.from_numpy(mel[None, None].astype(np.float32))
        with torch.no_grad():
            pooled = model.audio_model(input_features=pixels).pooler_output
            expected = F.normalize(model.audio_projection(pooled), dim=-1)
        np.testing.assert_allclose(found[second], expected[0], atol=1e-5)


def test_clap_rejects_invalid_folders(clap_folder: Path, tmp_path: Path) -> None:
    def load(folder: Path) -> None:
        clap.load_laion_audio(folder, device=CPU)

    with pytest.raises(MetricError, match="needs a folder with the files of laion/clap-htsat-unfused"):
        clap.load_laion_audio(None, device=CPU)
    with pytest.raises(MetricError, match=r"cannot read weights .*model\.safetensors: No such file"):
        load(tmp_path)
    lost = safetensors.torch.load_file(clap_folder / "model.safetensors")
    del lost["audio_projection.linear1.weight"]
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((clap_folder / name).read_text())
    safetensors.torch.save_file(lost, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        MetricError,
        match=r"lacks 1 weights of transformers' ClapModel; the first is audio_projection\.linear1\.weight",
    ):
        load(tmp_path)
    front = json.loads((clap_folder / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**front, "max_length_s": 5}))
    (tmp_path / "model.safetensors").write_bytes((clap_folder / "model.safetensors").read_bytes())
    with pytest.raises(MetricError, match="takes 240000 samples at 48000 Hz; expected 10 s at 48000 Hz"):
        load(tmp_path)


class Encoder(nn.Module):
    """A network with the interface of msclap's audio encoder: features and class scores of waveforms."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.stack([x.mean(1), x.square().mean(1), x[:, 0]], 1), x[:, :1]


def test_clap_2023_reads_a_torchscript_file(tmp_path: Path) -> None:
    torch.jit.script(Encoder()).save(str(tmp_path / "clap.ts"))
    extract = clap.load_2023(tmp_path / "clap.ts", device=CPU)
    x = recording(8 * 44_100 + 1, 44_100)
    found = extract([x])
    assert found.shape == (9, 3) and extract.rate == 44_100
    np.testing.assert_allclose(found[:, 2], x.samples[::44_100])
    second = x.samples[44_100:][: 7 * 44_100].astype(np.float64)
    np.testing.assert_allclose(found[1, 1], np.mean(second**2), rtol=1e-5)


def test_load_extractor_loads_clap_and_checks_its_weights(clap_folder: Path) -> None:
    assert load_extractor("clap-laion-audio", weights=clap_folder).name == "clap-laion-audio"
    with pytest.raises(MetricError, match="is not the expected file: its sha256 is"):
        load_extractor("clap-laion-music", weights=clap_folder, sha256="00ff")
    for family in ("clap-2023", "clap-laion-audio", "clap-laion-music"):
        assert extractor_modality(family) == "audio"
        with pytest.raises(MetricError, match=f"'{family}' needs"):
            load_extractor(family)
