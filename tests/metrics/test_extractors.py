"""Extractors by name: unknown names, invalid images, and pretrained networks if available."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metrics import MetricError, class_accuracy, extractor_names, frechet_distance, load_extractor

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning"
)


def bytes_(seed: int, *shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


class Means(nn.Module):
    """The mean of each channel, and of each row's mean: features with a closed form."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean([2, 3]), x.square().mean([2, 3])], 1)


@pytest.fixture
def script(tmp_path: Path):
    def save(module: nn.Module) -> Path:
        file = tmp_path / "net.ts"
        torch.jit.script(module).save(str(file))
        return file

    return save


# Invalid images


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (torch.rand(2, 3, 8, 8), "images are float32; give bytes, uint8"),
        (bytes_(0, 2, 4, 8, 8), "with 1 or 3 channels"),
        (bytes_(0, 2, 8, 8, 3), "with 1 or 3 channels"),
        (bytes_(0, 3, 8, 8), r"images have shape \(3, 8, 8\)"),
        (bytes_(0, 0, 3, 8, 8), r"images have shape \(0, 3, 8, 8\)"),
        (np.zeros((2, 3, 8, 8), np.uint8), "images are a ndarray; expected a uint8 tensor"),
    ],
)
def test_invalid_images_are_rejected(script, images, says: str) -> None:
    extract = load_extractor(f"torchscript:{script(Means())}")
    with pytest.raises(MetricError, match=says):
        extract(images)


def test_features_are_float32_under_autocast(script) -> None:
    extract, images = load_extractor(f"torchscript:{script(Means())}"), bytes_(3, 4, 3, 8, 8)
    plain = extract(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = extract(images)
    assert torch.equal(plain, inside) and inside.dtype == torch.float32 and not inside.requires_grad


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "locale",
            r"unknown extractor 'locale' \(known: .*inception, .*local, .*torchscript:<file>.*\)"
            r". Did you mean 'local'",
        ),
        ("local:small", "unknown extractor 'local:small'.*Did you mean 'local'"),
        ("inception:x", "Did you mean 'inception'"),
        ("", "unknown extractor ''"),
    ],
)
def test_unknown_names_are_rejected_with_a_suggestion(name: str, says: str) -> None:
    with pytest.raises(MetricError, match=says):
        load_extractor(name)
    assert {"inception", "local", "torchscript:<file>"} <= set(extractor_names())


def test_checksum_must_match_the_expected_one(script) -> None:
    file = script(Means())
    sha256 = load_extractor(f"torchscript:{file}").sha256
    assert load_extractor(f"torchscript:{file}", sha256=sha256[:12].upper()).sha256 == sha256
    with pytest.raises(MetricError, match="is not the expected file: its sha256 is"):
        load_extractor(f"torchscript:{file}", sha256="00ff")


# Pretrained networks, if available


@pytest.fixture(scope="module")
def cifar(shared_data: Path) -> tuple[Tensor, np.ndarray]:
    import io

    import pyarrow.parquet as pq
    from PIL import Image

    table = pq.read_table(shared_data / "cifar10" / "test.parquet")[:900]
    pixels = [np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["image"].to_pylist()]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2), np.array(table["label"])


@pytest.mark.slow
def test_mobilenet_distance_rises_with_blur_noise_lost_classes_and_copies(
    shared_weights: Path, cifar
) -> None:
    name = f"torchscript:{shared_weights / 'mobilenetv2_imagenet.ts'}?size=96&dim=1280&sha256=4ce24284"
    extract = load_extractor(name)
    assert (extract.name, extract.dim) == ("torchscript:mobilenetv2_imagenet@96", 1280)
    images, labels = cifar
    fake, three_kinds = images[200:350], images[200:][labels[200:] < 3][:150]
    features = extract(images[:200])

    def distance(pixels: Tensor) -> float:
        return float(frechet_distance(features, extract(pixels)))

    floor = distance(fake)
    blurred = [nn.functional.avg_pool2d(fake.float(), k, 1, k // 2).round().to(torch.uint8) for k in (3, 5)]
    noise = torch.randn(fake.shape, generator=torch.Generator().manual_seed(0))
    noisy = [(fake + level * noise).clamp(0, 255).round().to(torch.uint8) for level in (10, 30)]
    for changed in (blurred, noisy):
        small, large = map(distance, changed)
        assert floor < small < large
    assert floor < distance(three_kinds)
    assert 1.2 * floor < distance(fake[:15].repeat(10, 1, 1, 1))


def test_resnet_classifies_cifar(shared_weights: Path, cifar) -> None:
    """The README of the weights states an accuracy of 0.83-0.85 on these JPEG images."""
    extract = load_extractor(f"torchscript:{shared_weights / 'resnet56_cifar10.ts'}?size=32&dim=64&logits=10")
    images, labels = cifar
    assert (extract.dim, extract.beside) == (64, {"logits": 10})
    right = class_accuracy(extract.outputs(images[:400])["logits"], labels[:400])
    assert 0.78 < right.mean < 0.91 and right.low < 0.84 < right.high
