"""The door to extractors, TorchScript files, and Inception against torch-fidelity's own forward pass."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity.feature_extractor_inceptionv3 as fidelity
from torch import Tensor, nn

from metrics import MetricError, extractor_names, frechet_distance, load_extractor

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning"
)


def bytes_(seed: int, *shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


class Means(nn.Module):
    """The mean of each channel, and of each row's mean: features that can be written down."""

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


@pytest.fixture
def script(tmp_path: Path):
    def save(module: nn.Module) -> Path:
        file = tmp_path / "net.ts"
        torch.jit.script(module).save(str(file))
        return file

    return save


# TorchScript


def test_torchscript_features(script) -> None:
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


def test_torchscript_resizes_with_antialias(script) -> None:
    """Halved, pixels are what Pillow's antialiased bilinear makes of them (to its rounding to bytes)."""
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


def test_torchscript_takes_the_first_output_and_the_file_as_weights(script) -> None:
    file, images = script(Two()), bytes_(2, 3, 1, 4, 4)
    extract = load_extractor("torchscript", weights=file)
    np.testing.assert_allclose(extract(images), extract(images.expand(-1, 3, -1, -1)))
    assert extract.dim == 3


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("?sizes=96", "option 'sizes' is unknown or doubled"),
        ("?size=96&size=96", "option 'size' is unknown or doubled"),
        ("?size=0", "size=0: expected a whole number above 0"),
        ("?dim=1.5", "dim=1.5: expected a whole number"),
        ("?dim=", "dim=: expected a whole number"),
        ("?range=imagenet", "range=imagenet: expected one of signed, unit, byte"),
        ("?sha256=00ff00", "is not the file that was meant: its sha256 is"),
        ("?dim=7", "gives 6 features; the name asks for dim=7"),
    ],
)
def test_torchscript_options_refused(script, query: str, says: str) -> None:
    with pytest.raises(MetricError, match=says):
        load_extractor(f"torchscript:{script(Means())}{query}")


def test_torchscript_files_refused(script, tmp_path: Path) -> None:
    with pytest.raises(MetricError, match=r"gives \(1, 3, 64, 64\) for one image; expected features"):
        load_extractor(f"torchscript:{script(Maps())}")
    with pytest.raises(MetricError, match=r"cannot read weights .*absent\.ts: No such file"):
        load_extractor(f"torchscript:{tmp_path / 'absent.ts'}")
    (tmp_path / "text.ts").write_text("not a network")
    with pytest.raises(MetricError, match=r"text\.ts is not a TorchScript file"):
        load_extractor(f"torchscript:{tmp_path / 'text.ts'}")
    with pytest.raises(MetricError, match="needs a file"):
        load_extractor("torchscript")


# What every extractor refuses


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
def test_images_refused(script, images, says: str) -> None:
    extract = load_extractor(f"torchscript:{script(Means())}")
    with pytest.raises(MetricError, match=says):
        extract(images)


def test_features_are_float32_whatever_the_caller_set(script) -> None:
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
            r"unknown extractor 'locale' \(known: inception, local, torchscript:<file>\). Did you mean 'local'",
        ),
        ("local:small", "unknown extractor 'local:small'.*Did you mean 'local'"),
        ("inception:x", "Did you mean 'inception'"),
        ("", "unknown extractor ''"),
    ],
)
def test_unknown_names(name: str, says: str) -> None:
    with pytest.raises(MetricError, match=says):
        load_extractor(name)
    assert extractor_names() == ["inception", "local", "torchscript:<file>"]


# Inception


class Untrained(fidelity.FeatureExtractorInceptionV3):
    """torch-fidelity's network with its initial weights: it takes no file."""

    def load_state_dict(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    file = tmp_path_factory.mktemp("inception") / "untrained.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: {})
        torch.manual_seed(0)
        network = Untrained("inception", ["2048"])
    torch.save(network.state_dict(), file)
    return network, file


def test_inception_is_torch_fidelitys(inception) -> None:
    network, file = inception
    extract, images = load_extractor("inception", weights=file), bytes_(4, 2, 3, 32, 40)
    assert torch.equal(extract(images), network(images)[0])
    assert extract.dim == 2048 and extract.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert extract.name == f"inception@{extract.sha256[:8]}"  # not the original weights: not FID
    grey = images[:, :1]
    assert torch.equal(extract(grey), network(grey.expand(-1, 3, -1, -1))[0])


def test_inception_without_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    with pytest.raises(
        MetricError, match=r"hub/checkpoints/weights-inception-.*; download https://.*place it there"
    ):
        load_extractor("inception")
    assert list(tmp_path.iterdir()) == []
    file = tmp_path / "hub/checkpoints/weights-inception-2015-12-05-6726825d.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"half a download")
    with pytest.raises(MetricError, match="is not the file that was meant"):
        load_extractor("inception")


class Trap:
    def __reduce__(self) -> tuple:
        return (Path("trapped").touch, ())


def test_inception_runs_nothing_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


# Pretrained networks, where they are there


@pytest.fixture(scope="module")
def cifar(shared_data: Path) -> tuple[Tensor, np.ndarray]:
    import io

    import pyarrow.parquet as pq
    from PIL import Image

    table = pq.read_table(shared_data / "cifar10" / "test.parquet")[:900]
    pixels = [np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["image"].to_pylist()]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2), np.array(table["label"])


def test_mobilenet_sees_blur_noise_lost_classes_and_copies(shared_weights: Path, cifar) -> None:
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


def test_resnet_reads_cifar(shared_weights: Path, cifar) -> None:
    """Its own logits, as the weights' README has it: 0.83-0.85 on these JPEG images."""
    extract = load_extractor(f"torchscript:{shared_weights / 'resnet56_cifar10.ts'}?size=32")
    images, labels = cifar
    assert extract.dim == 74
    right = (extract(images[:400])[:, 64:].argmax(1).numpy() == labels[:400]).mean()
    assert 0.78 < right < 0.91
