"""TorchScript files: features with a closed form, options, logits, and invalid files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metrics import MetricError, load_extractor

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning"
)


def bytes_(seed: int, *shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


class Means(nn.Module):
    """The mean of each channel, and of each row's mean: features with a closed form."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean([2, 3]), x.square().mean([2, 3])], 1)


class Two(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.mean([2, 3]), x


class Picky(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


class Maps(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class Split(nn.Module):
    """Features, and logits of three classes."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        means = x.mean([2, 3])
        return torch.cat([means, means.square()], 1), 2 * means


@pytest.fixture
def script(tmp_path: Path):
    def save(module: nn.Module) -> Path:
        file = tmp_path / "net.ts"
        torch.jit.script(module).save(str(file))
        return file

    return save


def test_features_equal_closed_forms(script) -> None:
    file, images = script(Means()), bytes_(0, 5, 3, 8, 6)
    signed = load_extractor(f"torchscript:{file}")
    x = images.double().numpy() / 127.5 - 1
    expected = np.concatenate([x.mean((2, 3)), (x**2).mean((2, 3))], axis=1)
    np.testing.assert_allclose(signed(images), expected, atol=1e-6)
    assert (signed.name, signed.dim, signed.channels) == ("torchscript:net", 6, 3)
    assert signed.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    for option, divisor in (("unit", 255), ("byte", 1)):
        other = load_extractor(f"torchscript:{file}?range={option}&dim=3")
        np.testing.assert_allclose(
            other(images), images.double().numpy().mean((2, 3)) / divisor, rtol=1e-6, atol=1e-6
        )
        assert other.dim == 3


def test_images_are_resized_like_pillow(script) -> None:
    """The reference is Pillow's antialiased bilinear filter, up to its rounding to bytes."""
    from PIL import Image

    file, images = script(Picky()), bytes_(1, 4, 1, 32, 32)
    with pytest.raises(MetricError, match="does not take images of 3x64x64"):
        load_extractor(f"torchscript:{file}")
    extract = load_extractor(
        f"torchscript:{file}?size=4&sha256={hashlib.sha256(file.read_bytes()).hexdigest()[:8]}"
    )
    assert extract.name == "torchscript:net@4" and "4x4 bilinear with antialias" in extract.preprocessing
    pillow = [
        np.asarray(Image.fromarray(x[0]).resize((4, 4), Image.Resampling.BILINEAR)) for x in images.numpy()
    ]
    layer = torch.jit.load(str(file)).layer
    weight, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
    x = np.stack(pillow)[:, None].repeat(3, axis=1) / 127.5 - 1
    slack = np.abs(weight).sum(axis=1).max() * 0.75 / 127.5
    np.testing.assert_allclose(extract(images), x.reshape(4, -1) @ weight.T + bias, atol=slack)


def test_first_output_holds_the_features(script) -> None:
    file, images = script(Two()), bytes_(2, 3, 1, 4, 4)
    extract = load_extractor("torchscript", weights=file)
    np.testing.assert_allclose(extract(images), extract(images.expand(-1, 3, -1, -1)))
    assert extract.dim == 3


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("?sizes=96", "option 'sizes' is unknown or repeated"),
        ("?size=96&size=96", "option 'size' is unknown or repeated"),
        ("?size=0", "size=0: expected a whole number from 1 to 2,048"),
        ("?size=99999999", "size=99999999: expected a whole number from 1 to 2,048"),
        (f"?dim={'9' * 5000}", "dim=9{12}: expected a whole number from 1 to"),
        ("?dim=1.5", "dim=1.5: expected a whole number"),
        ("?dim=", "dim=: expected a whole number"),
        ("?range=imagenet", "range=imagenet: expected one of signed, unit, byte"),
        ("?sha256=00ff00", "is not the expected file: its sha256 is"),
        ("?dim=7", "returns 6 outputs, fewer than dim=7"),
    ],
)
def test_invalid_options_are_rejected(script, query: str, says: str) -> None:
    with pytest.raises(MetricError, match=says):
        load_extractor(f"torchscript:{script(Means())}{query}")


def test_invalid_files_are_rejected(script, tmp_path: Path) -> None:
    with pytest.raises(MetricError, match=r"returns \(1, 3, 64, 64\) for one image; expected features"):
        load_extractor(f"torchscript:{script(Maps())}")
    with pytest.raises(MetricError, match=r"cannot read weights .*absent\.ts: No such file"):
        load_extractor(f"torchscript:{tmp_path / 'absent.ts'}")
    (tmp_path / "text.ts").write_text("not a network")
    with pytest.raises(MetricError, match=r"text\.ts is not a TorchScript file"):
        load_extractor(f"torchscript:{tmp_path / 'text.ts'}")
    with pytest.raises(MetricError, match="needs a file"):
        load_extractor("torchscript")


def test_logits_are_returned_with_the_features(script) -> None:
    """Logits are the last outputs, if the name gives their number, or a second tensor."""
    images = bytes_(6, 3, 3, 8, 8)
    means = images.double().numpy().mean((2, 3)) / 127.5 - 1
    counted = load_extractor(f"torchscript:{script(Means())}?dim=3&logits=2")
    assert (counted.dim, counted.beside, counted.counted) == (3, {"logits": 2}, 2)
    assert torch.equal(
        counted.outputs(images)["logits"], load_extractor(f"torchscript:{script(Means())}")(images)[:, -2:]
    )
    second = load_extractor(f"torchscript:{script(Split())}")
    assert (second.dim, second.beside, second.counted) == (6, {"logits": 3}, None)
    np.testing.assert_allclose(second.outputs(images)["logits"], 2 * means, atol=1e-6)
    sibling = second.sibling("logits")
    assert (sibling.name, sibling.dim, sibling.beside) == ("torchscript:net-logits", 3, {"features": 6})
    np.testing.assert_allclose(sibling(images), 2 * means, atol=1e-6)
    with pytest.raises(MetricError, match=r"has no output 'spatial' \(known: features, logits\)"):
        second.sibling("spatial")
    with pytest.raises(MetricError, match="returns 6 outputs, fewer than logits=7"):
        load_extractor(f"torchscript:{script(Means())}?logits=7")
