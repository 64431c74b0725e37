"""Inception against torch-fidelity's forward pass with its initial weights, without the original ones."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity.feature_extractor_inceptionv3 as fidelity
from torch import Tensor, nn
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from metrics import MetricError, load_extractor
from metrics.extractors.base import Extractor


def bytes_(seed: int, *shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


class Untrained(fidelity.FeatureExtractorInceptionV3):
    """torch-fidelity's network with its initial weights; no file is loaded."""

    def load_state_dict(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    file = tmp_path_factory.mktemp("inception") / "untrained.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: {})
        torch.manual_seed(0)
        network = Untrained("inception", ["2048", "logits_unbiased"])
    torch.save(network.state_dict(), file)
    return network, file


@pytest.fixture(scope="module")
def load(inception) -> Callable[[str], Extractor]:
    """Return a function that loads an extractor of these weights once."""
    return cache(lambda name: load_extractor(name, weights=inception[1]))


def test_features_and_logits_equal_torch_fidelity(inception, load: Callable[[str], Extractor]) -> None:
    network, file = inception
    extract, images = load("inception"), bytes_(4, 2, 3, 32, 40)
    features, logits = network(images)
    found = extract.outputs(images)
    assert torch.equal(found["features"], features) and torch.equal(found["logits"], logits)
    assert torch.equal(extract(images), features)
    assert (extract.dim, extract.beside) == (2048, {"spatial": 2023, "logits": 1008})
    assert extract.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert extract.name == f"inception@{extract.sha256[:8]}"  # not the original weights: not FID
    grey = images[:, :1]
    assert torch.equal(extract(grey), network(grey.expand(-1, 3, -1, -1))[0])


@pytest.mark.slow
def test_logits_equal_pooled_features_times_the_matrix(inception, load: Callable[[str], Extractor]) -> None:
    """The logits have no bias, as in ADM; each of the two outputs also has its own extractor name."""
    network, _ = inception
    images = bytes_(5, 2, 3, 20, 20)
    logits, spatial = (load(f"inception-{o}") for o in ("logits", "spatial"))
    pooled = load("inception")(images).double()
    expected = pooled @ network.fc.weight.double().T
    torch.testing.assert_close(logits(images).double(), expected, rtol=1e-4, atol=1e-4)
    assert (logits.dim, spatial.dim) == (1008, 2023)
    assert logits.name == f"inception@{logits.sha256[:8]}-logits"
    assert load("inception").sibling("spatial").name == spatial.name


def test_spatial_features_are_the_first_seven_maps_of_mixed_6(
    inception, load: Callable[[str], Extractor]
) -> None:
    """The layers up to the 1x1 branch of TensorFlow's third 17x17 block are applied by hand."""
    network, _ = inception
    images = bytes_(7, 2, 3, 32, 32)
    x = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(299, 299), align_corners=False)
    x = (x - 128) / 128
    for name in (
        "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3",
        "MaxPool_2", "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c",
    ):  # fmt: skip
        x = getattr(network, name)(x)
    branch = network.Mixed_6d.branch1x1
    maps = branch.bn(branch.conv(x)).clamp(min=0).numpy()
    found = load("inception-spatial")(images).numpy()
    expected = [maps[:, c, row, column] for row in range(17) for column in range(17) for c in range(7)]
    np.testing.assert_allclose(found, np.stack(expected, axis=1), rtol=1e-5, atol=1e-6)
    assert found.shape == (2, 2023)


def test_missing_or_wrong_weights_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    with pytest.raises(
        MetricError, match=r"hub/checkpoints/weights-inception-.*; download https://.*to this path"
    ):
        load_extractor("inception")
    assert list(tmp_path.iterdir()) == []
    file = tmp_path / "hub/checkpoints/weights-inception-2015-12-05-6726825d.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"half a download")
    with pytest.raises(MetricError, match="is not the expected file"):
        load_extractor("inception")


class Trap:
    def __reduce__(self) -> tuple:
        return (Path("trapped").touch, ())


def test_loading_weights_executes_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trap.pth").write_bytes(pickle.dumps({"fc.weight": Trap()}, protocol=2))
    torch.save({"fc.weight": Trap()}, tmp_path / "zipped.pth")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "other.pth").read_bytes()[:300])
    for name in ("trap", "zipped", "other", "cut"):
        with pytest.raises(
            MetricError, match=rf"{name}\.pth does not hold the weights of torch-fidelity's Inception"
        ):
            load_extractor("inception", weights=tmp_path / f"{name}.pth")
    assert not (tmp_path / "trapped").exists()


def test_download_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download by torch hub with the wrong checksum is removed."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    wrong = tmp_path / "wrong.pth"
    wrong.write_bytes(b"another file")
    monkeypatch.setattr(fidelity, "URL_INCEPTION_V3", wrong.as_uri())
    with pytest.raises(MetricError, match=r"cannot download file:.*invalid hash value"):
        load_extractor("inception", download=True)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [wrong]
