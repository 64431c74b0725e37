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
