"""VGGish against torchvggish's forward pass in float64; names and sizes of its weights; invalid files."""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from metrics import MetricError
from metrics.extractors.audio import vggish
from metrics.extractors.audio.log_mel import RATE, WINDOW, log_mel
from metrics.files.recordings import Recording

CPU = torch.device("cpu")


def recording(samples: int) -> Recording:
    x = 0.1 * np.random.default_rng(0).standard_normal(samples)
    return Recording("a.wav", RATE, x.astype(np.float32))


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the network narrow, with a few channels."""
    monkeypatch.setattr(vggish, "PLAN", (3, "pool", 4, "pool", 5, 5, "pool", 6, 6, "pool"))
    monkeypatch.setattr(vggish, "WIDE", 7)


def weights() -> OrderedDict[str, Tensor]:
    """Return He-normal weights, so that the output depends on the input."""
    torch.manual_seed(0)
    state = vggish.VGGish().state_dict()
    for x in state.values():
        torch.nn.init.kaiming_normal_(x) if x.ndim > 1 else torch.nn.init.normal_(x, std=0.1)
    return state


def by_hand(state: dict[str, Tensor], patches: Tensor) -> Tensor:
    """Return torchvggish's forward pass in float64, with its transpositions, without the last rectifier."""
    w, x = {name: value.double() for name, value in state.items()}, patches.double()
    for layer in (0, 3, 6, 8, 11, 13):
        x = F.conv2d(x, w[f"features.{layer}.weight"], w[f"features.{layer}.bias"], padding=1).clamp(min=0)
        if layer in (0, 3, 8, 13):
            x = F.max_pool2d(x, 2, 2)
    x = x.transpose(1, 3).transpose(1, 2).contiguous().view(len(x), -1)
    for layer in (0, 2, 4):
        x = x @ w[f"embeddings.{layer}.weight"].T + w[f"embeddings.{layer}.bias"]
        x = x.clamp(min=0) if layer < 4 else x
    return x


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_vggish_equals_torchvggish(narrow: None, tmp_path: Path, suffix: str) -> None:
    state, file = weights(), tmp_path / f"vggish.{suffix}"
    if suffix == "pth":
        torch.save(state | {"pproc.pca_means": torch.zeros(128, 1)}, file)
    else:
        safetensors.torch.save_file(state, file)
    extract, x = vggish.load(file, device=CPU), recording(WINDOW + 96 * 160 + 100)
    found = extract([x])
    frames = log_mel(torch.from_numpy(x.samples)[None], 1e-2)[0]
    expected = by_hand(state, torch.stack([frames[:96], frames[96:192]])[:, None])
    assert found.shape == (2, 128) and (found < 0).any()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert extract.name == f"vggish@{extract.sha256[:8]}" and "no dither" in extract.preprocessing
    with pytest.raises(MetricError, match=r"a\.wav lasts 0\.500 s; .*at least 0\.975 s; to pad"):
        extract([recording(8000)])
    assert vggish.load(f"{file}?tail=pad", device=CPU)([recording(8000)]).shape == (1, 128)


def test_vggish_has_the_names_and_sizes_of_torchvggish() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(x.shape) for name, x in vggish.VGGish().named_parameters()}
    widths = {0: (64, 1), 3: (128, 64), 6: (256, 128), 8: (256, 256), 11: (512, 256), 13: (512, 512)}
    expected = {f"features.{n}.weight": (*w, 3, 3) for n, w in widths.items()}
    expected |= {f"features.{n}.bias": w[:1] for n, w in widths.items()}
    for n, w in {0: (4096, 12_288), 2: (4096, 4096), 4: (128, 4096)}.items():
        expected |= {f"embeddings.{n}.weight": w, f"embeddings.{n}.bias": w[:1]}
    assert shapes == expected
    assert sum(map(math.prod, shapes.values())) == 72_141_184  # as published


def test_vggish_rejects_other_weights(narrow: None, tmp_path: Path) -> None:
    state = weights()
    del state["embeddings.4.bias"]
    safetensors.torch.save_file(state, tmp_path / "lost.safetensors")
    with pytest.raises(
        MetricError, match=r"lost\.safetensors does not hold the weights of VGGish.*embeddings\.4\.bias"
    ):
        vggish.load(tmp_path / "lost.safetensors", device=CPU)
    (tmp_path / "text.pth").write_text("nothing")
    with pytest.raises(MetricError, match=r"text\.pth does not hold weights that can be read safely"):
        vggish.load(tmp_path / "text.pth", device=CPU)
    torch.save({"model": torch.zeros(3)}, tmp_path / "one.pth")
    with pytest.raises(MetricError, match=r"one\.pth does not hold named tensors"):
        vggish.load(tmp_path / "one.pth", device=CPU)
    with pytest.raises(MetricError, match=r"vggish-10086976\.pth to this path"):
        vggish.load(tmp_path / "absent.pth", device=CPU)


class Trap:
    def __reduce__(self) -> tuple:
        return (Path("trapped").touch, ())


def test_loading_weights_executes_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"features.0.weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(
        MetricError, match=r"trap\.pth does not hold weights that can be read safely"
    ) as refusal:
        vggish.load(tmp_path / "trap.pth", device=CPU)
    assert "weights_only" not in str(refusal.value)
    assert not (tmp_path / "trapped").exists()
