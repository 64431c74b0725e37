"""TorchScript files as encoders: the map before the pool, resized to the grid, with its width and FLOPs."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.errors import UserError
from tests.support.encoders import opened, pictures

DIM, SIZE = 6, 32
FLOPS = 2 * 3 * 9 * DIM * (SIZE // 4) ** 2
NAME = f"torchscript:tiny?size={SIZE}&dim={DIM}&flops={FLOPS}"


class Tiny(nn.Module):
    """A convolution of stride 4; with `pooled`, its mean over all cells and then three logits."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled
        self.conv = nn.Conv2d(3, DIM, 3, stride=4, padding=1)
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))

    def forward(self, x: Tensor) -> Tensor:
        maps = F.relu(self.conv(x))
        if not self.pooled:
            return maps
        vectors = maps.mean((2, 3))
        return torch.cat([vectors, vectors[:, :3]], dim=1)


@pytest.fixture(params=[True, False], ids=["pooled", "map"])
def script(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Tiny, Path]:
    network, file = Tiny(request.param).eval(), tmp_path / "tiny.ts"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.freeze(torch.jit.script(network)).save(str(file))
    return network, file


def test_tokens_are_the_map_before_the_pool_row_by_row(script: tuple[Tiny, Path]) -> None:
    network, file = script
    encoder = opened(NAME, file, grid=(8, 8))
    with torch.no_grad():
        expected = F.relu(network.conv(pictures()))
    tokens = encoder.features(pictures())
    torch.testing.assert_close(tokens, expected.flatten(2).transpose(1, 2))
    assert (encoder.dim, encoder.flops, len(encoder.sha256)) == (DIM, FLOPS, 64)
    # Grey images are repeated, and another grid is resized to.
    grey = opened(NAME, file, channels=1, grid=(4, 4)).features(pictures(1))
    with torch.no_grad():
        maps = F.relu(network.conv(pictures(1).expand(-1, 3, -1, -1)))
    resized = F.interpolate(maps, (4, 4), mode="bilinear", align_corners=False)
    torch.testing.assert_close(grey, resized.flatten(2).transpose(1, 2))


class Pooling(nn.Module):
    """The convolution of `Tiny`, a pool, and a linear head, with a squeeze and excitation before if asked."""

    def __init__(self, pool: nn.Module, gate: bool = False) -> None:
        super().__init__()
        self.conv, self.pool, self.head = Tiny(False).conv, pool, nn.Linear(DIM, 3)
        self.gate = nn.Linear(DIM, DIM) if gate else None
        self.norm = nn.BatchNorm2d(DIM)

    def maps(self, x: Tensor) -> Tensor:
        maps = self.norm(self.conv(x))
        return maps if self.gate is None else maps * self.gate(maps.mean((2, 3)))[..., None, None]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.maps(x)).flatten(1))


class Mean(nn.Module):
    """The mean over the last two axes, which count from the end."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((-2, -1), keepdim=True)


POOLED = {
    "adaptive": lambda: Pooling(nn.AdaptiveAvgPool2d(1)),
    "average": lambda: Pooling(nn.AvgPool2d(SIZE // 4)),
    "mean": lambda: Pooling(Mean()),
    "gated": lambda: Pooling(nn.AdaptiveAvgPool2d((1, 1)), gate=True),
}


def traced(network: nn.Module, file: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(network.eval(), torch.zeros(1, 3, SIZE, SIZE)).save(str(file))
    return file


@pytest.mark.parametrize("kind", POOLED)
def test_plain_trace_gives_the_map_before_its_last_pool_without_the_head(tmp_path: Path, kind: str) -> None:
    network = POOLED[kind]()
    gate = 2 * DIM * DIM if network.gate is not None else 0
    name = NAME.replace(f"flops={FLOPS}", f"flops={FLOPS + gate}")
    encoder = opened(name, traced(network, tmp_path / "traced.ts"), grid=(8, 8))
    with torch.no_grad():
        expected = network.maps(pictures())
    torch.testing.assert_close(encoder.features(pictures()), expected.flatten(2).transpose(1, 2))
    assert encoder.params == sum(parameter.numel() for parameter in network.parameters())


def test_frozen_network_has_the_parameters_of_its_graph(script: tuple[Tiny, Path]) -> None:
    network, file = script
    assert opened(NAME, file, grid=(8, 8)).params == sum(p.numel() for p in network.parameters())


def test_pool_of_some_cells_and_another_size_are_one_sentence(tmp_path: Path) -> None:
    part = nn.Sequential(Tiny(False), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4 * DIM, 3))
    with pytest.raises(UserError, match="no average pool over all cells"):
        opened(NAME, traced(part, tmp_path / "part.ts"), grid=(8, 8))
    fixed = nn.Sequential(Tiny(False), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * DIM, 3))
    with pytest.raises(UserError, match="no average pool over all cells"):
        opened(NAME, traced(fixed, tmp_path / "fixed.ts"), grid=(8, 8))
    flat = nn.Sequential(Tiny(False), nn.Flatten(), nn.Linear(64 * DIM, 3))
    with pytest.raises(UserError, match="does not take images of size=64"):
        opened(NAME.replace("size=32", "size=64"), traced(flat, tmp_path / "flat.ts"), grid=(8, 8))


@pytest.mark.parametrize(("scale", "low", "high"), [("unit", 0, 1), ("byte", 0, 255)])
def test_pixels_have_the_range_of_the_name(
    script: tuple[Tiny, Path], scale: str, low: float, high: float
) -> None:
    network, file = script
    pixels = low + (pictures() + 1) / 2 * (high - low)
    with torch.no_grad():
        expected = F.relu(network.conv(pixels)).flatten(2).transpose(1, 2)
    tokens = opened(f"{NAME}&range={scale}", file, grid=(8, 8)).features(pictures())
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (NAME.replace("dim=6", "dim=7"), r"states dim=7, but .*tiny\.ts has 6; write dim=6"),
        (NAME.replace("flops=", "flops=1"), f"has {FLOPS}; write flops={FLOPS}"),
        ("torchscript:tiny?size=32&dim=6", "option 'flops' is missing"),
        (f"{NAME}&dims=3", "option 'dims' is missing, repeated or wrong"),
        (f"{NAME}&size=16", "missing, repeated or wrong"),
        (NAME.replace("size=32", "size=99999"), "option 'size'"),
    ],
)
def test_wrong_name_is_one_sentence(script: tuple[Tiny, Path], name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        opened(name, script[1], grid=(8, 8))


def test_missing_and_other_files_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs a TorchScript file; set method\.encoder\.weights"):
        opened(NAME)
    with pytest.raises(UserError, match="no such file"):
        opened(NAME, tmp_path / "absent.ts")
    (tmp_path / "text.ts").write_text("not one")
    with pytest.raises(UserError, match="is not a TorchScript file"):
        opened(NAME, tmp_path / "text.ts")


def test_mobilenet_of_the_shared_weights_gives_its_own_pooled_features(shared_weights: Path) -> None:
    file = shared_weights / "mobilenetv2_imagenet.ts"
    name = "torchscript:mobilenetv2?size=64&dim=1280&flops=48897024"
    encoder = opened(name, file, grid=(2, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = torch.jit.load(str(file)).eval()
    x = F.interpolate(pictures(), (64, 64), mode="bilinear", antialias=True, align_corners=False)
    with torch.no_grad():
        expected = network(x)[:, :1280]
    found = [encoder.features(pictures()) for _ in range(4)]
    torch.testing.assert_close(found[0].mean(1), expected, rtol=1e-4, atol=1e-4)
    # TorchScript optimizes a function after its first calls, which must not move a bit.
    assert all(torch.equal(tokens, found[0]) for tokens in found)
