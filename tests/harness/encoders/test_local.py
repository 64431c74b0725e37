"""Local encoders: deterministic, trained on the training split only, cached with a checksum."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import r2_score

from harness.config.data_spec import DataSpec
from harness.data.dataset import Sample
from harness.data.open import Split, open_dataset, split
from harness.encoders import local
from harness.encoders.base import open_encoder
from harness.errors import UserError
from tests.support.demonstrations import demonstrations, state

CPU = torch.device("cpu")


def choice(name: str, **fields: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"name": name, "weights": "", "sha256": "", "download": False, **fields})


class Squares:
    """A data set of 256 images of 4x4 pixels, bright in the upper or lower half, which is easy to learn."""

    modality, classes, shape, fingerprint = "image", 2, (1, 4, 4), "squares"

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        self.labels = draw.integers(0, 2, 256)
        self.pixels = draw.integers(0, 100, (256, 1, 4, 4)).astype(np.uint8)
        for pixels, label in zip(self.pixels, self.labels, strict=True):
            pixels[0, 2 * label : 2 * label + 2] += 150
        self.indices_read: list[int] = []

    def __len__(self) -> int:
        return len(self.labels)

    def sample(self, index: int) -> Sample:
        self.indices_read.append(index)
        return Sample(self.pixels[index], int(self.labels[index]))

    def key(self, index: int) -> bytes:
        return self.pixels[index].tobytes()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLOWRACE_CACHE", str(tmp_path))
    return tmp_path / "encoders"


def opened(
    name: str, data: Any, held_out: float = 0.25, grid: tuple[int, ...] = (2, 2), **fields: Any
) -> Any:
    return open_encoder(choice(name, **fields), data, grid=grid, held_out=held_out, device=CPU)


def test_local_encoder_learns_digits(cache: Path) -> None:
    encoder = opened("local:tiny", open_dataset(DataSpec()), held_out=0.1, grid=(4, 4))
    assert encoder.accuracy > 0.9
    assert (encoder.dim, encoder.grid, len(encoder.sha256)) == (32, (4, 4), 64)


def test_fit_reads_training_images_only(cache: Path) -> None:
    data = Squares()
    sides = split(data, 0.25)
    local.fit(local.build("tiny", data.shape, 2, (2, 2)), data, sides.train, CPU)
    assert set(data.indices_read) <= set(sides.train)
    assert len(set(data.indices_read)) > 0.9 * len(sides.train)


def test_weights_do_not_depend_on_torchs_seed_or_threads(tmp_path: Path, monkeypatch: Any) -> None:
    found = []
    for number, threads in enumerate((1, 2)):
        monkeypatch.setenv("FLOWRACE_CACHE", str(tmp_path / str(number)))
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        torch.manual_seed(number)
        state = torch.get_rng_state()
        found.append(opened("local:tiny", Squares()))
        assert torch.equal(state, torch.get_rng_state())
        assert torch.get_num_threads() == threads
        torch.set_num_threads(before)
    assert found[0].sha256 == found[1].sha256
    assert found[0].accuracy == found[1].accuracy == 1.0


def test_cached_weights_are_not_trained_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened("local:tiny", Squares())
    monkeypatch.setattr(local, "fit", lambda *_: pytest.fail("trained again"))
    data = Squares()
    second = opened("local:tiny", data)
    assert (second.sha256, second.accuracy) == (first.sha256, first.accuracy)
    assert data.indices_read == []


@pytest.mark.parametrize("damage", [lambda b: b[:-40], lambda b: b[:-8] + bytes(8), lambda b: b""])
def test_damaged_weights_are_trained_again(cache: Path, damage: Any) -> None:
    first = opened("local:tiny", Squares())
    (file,) = cache.glob("*.safetensors")
    file.write_bytes(damage(file.read_bytes()))
    assert opened("local:tiny", Squares()).sha256 == first.sha256


def test_cache_file_depends_on_data_split_and_grid(cache: Path) -> None:
    data, other = Squares(), Squares()
    other.fingerprint = "other"
    opened("local:tiny", data)
    opened("local:tiny", other)
    opened("local:tiny", data, held_out=0.5)
    opened("local:tiny", data, grid=(4, 4))
    assert len(list(cache.glob("*.safetensors"))) == 4


WORKER = """
import sys, torch
from tests.harness.encoders.test_local import Squares, local, opened
fit = local.fit
local.fit = lambda *args: (print("trained", flush=True), fit(*args))
print(opened("local:tiny", Squares()).sha256)
"""


@pytest.mark.slow
def test_two_processes_train_once(cache: Path) -> None:
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", WORKER]
    both = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lines = [process.communicate()[0].split() for process in both]
    assert sorted(map(len, lines)) == [1, 2]
    assert lines[0][-1] == lines[1][-1]


def test_features_and_attention_equal_those_by_hand(cache: Path) -> None:
    """The reference: patches cut by reshape in row-major order, attention written out, in float64."""
    encoder = opened("random:tiny", Squares())
    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    w = {
        name: tensor.double()
        for name, tensor in local.build("tiny", (1, 4, 4), 2, (2, 2)).state_dict().items()
    }

    def norm(h: torch.Tensor, at: str) -> torch.Tensor:
        h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return h * w[f"{at}.weight"] + w[f"{at}.bias"]

    def linear(h: torch.Tensor, at: str) -> torch.Tensor:
        return h @ w[f"{at}.weight"].T + w[f"{at}.bias"]

    patches = x.double().reshape(3, 2, 2, 2, 2).permute(0, 1, 3, 2, 4).reshape(3, 4, 4)
    h, maps = linear(patches, "embed") + w["position"], []
    for block in ("blocks.0", "blocks.1"):
        q, k, v = (
            p.reshape(3, 4, 2, 16).transpose(1, 2)
            for p in linear(norm(h, f"{block}.norm1"), f"{block}.qkv").chunk(3, -1)
        )
        maps.append((q @ k.transpose(-1, -2) / 4).softmax(-1))
        mixed = maps[-1] @ v
        h = h + linear(mixed.transpose(1, 2).reshape(3, 4, 32), f"{block}.out")
        h = h + linear(F.gelu(linear(norm(h, f"{block}.norm2"), f"{block}.mlp.0")), f"{block}.mlp.2")
    torch.testing.assert_close(encoder.features(x).double(), norm(h, "norm"), atol=1e-5, rtol=1e-5)
    view = encoder.view(x, summary=True, attention=2)
    torch.testing.assert_close(view.attention.double(), torch.stack(maps, 1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(view.summary.double(), norm(h, "norm").mean(1), atol=1e-5, rtol=1e-5)
    assert torch.equal(encoder.view(x, attention=1).attention, view.attention[:, 1:])
    with pytest.raises(UserError, match="'random:tiny' has 2 blocks; choose a deeper one"):
        encoder.view(x, attention=3)


def test_encoder_is_frozen_and_computes_in_float32(cache: Path) -> None:
    encoder = opened("random:small", Squares())
    x = torch.zeros(2, 1, 4, 4, requires_grad=True)
    features = encoder.features(x)
    assert (features.dtype, features.shape, features.requires_grad) == (torch.float32, (2, 4, 64), False)
    assert encoder.accuracy is None
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder.features(x).dtype == torch.float32


def test_architecture_counts_flops_of_patches_blocks_and_attention() -> None:
    """Counted by hand, because torch does not count the fused attention of a real pass on the CPU."""
    matmuls = 16 * 2 * (12 * 64 + 4 * 12 * 64**2) + 4 * 2 * 2 * 16**2 * 64
    assert local.RandomEncoder.architecture("small", (3, 8, 8), 10, (4, 4)) == (64, matmuls, 4)


@pytest.mark.parametrize(
    ("name", "fields", "grid", "message"),
    [
        ("local", {}, (2, 2), "names no model"),
        ("lokal:tiny", {}, (2, 2), "Did you mean 'local'"),
        ("local:tny", {}, (2, 2), "Did you mean 'tiny'"),
        ("local:tiny", {}, (3, 3), r"samples of 4x4 do not divide into a grid of 3x3 tokens"),
        ("random:tiny", {"weights": "x.safetensors"}, (2, 2), "takes no weights file"),
        ("random:tiny", {"sha256": "0" * 64}, (2, 2), r"method\.encoder\.sha256 is 0000"),
    ],
)
def test_encoder_is_rejected_when_name_grid_or_weights_are_wrong(
    cache: Path, name: str, fields: dict[str, str], grid: tuple[int, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        opened(name, Squares(), grid=grid, **fields)
    assert not list(cache.glob("*.safetensors"))


def test_local_encoder_is_rejected_for_data_without_labels(cache: Path) -> None:
    data = Squares()
    data.classes = 1
    with pytest.raises(UserError, match=r"learns from labels.*random:tiny"):
        opened("local:tiny", data)


def test_local_encoder_of_demonstrations_learns_their_states(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames are grey levels 40 episode + 5 step, whose episode is easy to learn."""
    monkeypatch.setattr(local, "EPOCHS", 100)
    spec = DataSpec(name="demos", root=str(demonstrations(tmp_path)), frames=2, held_out=0.2, chunk=2)
    videos = open_dataset(spec).with_parts(("video",))  # pyright: ignore[reportAttributeAccessIssue]
    scaled = videos.robot.state.scaled
    assert videos.targets(3).tolist() == scaled(np.array([state(0, 3), state(0, 4)])).ravel().tolist()
    assert videos.targets(4).tolist() == scaled(np.array([state(0, 4)] * 2)).ravel().tolist()
    encoder = opened("local:tiny", videos, grid=(2, 2, 2), held_out=0.0)
    assert encoder.accuracy is None and encoder.r2 is None
    everything = np.arange(len(videos))
    pixels = torch.from_numpy(np.stack([videos.sample(i).x for i in everything]))
    truth = np.stack([videos.targets(i) for i in everything])
    with torch.no_grad():
        predicted = encoder._network.predict(pixels.float() / 127.5 - 1).numpy()
    assert r2_score(truth[:, ::2], predicted[:, ::2]) > 0.9
    pooled = r2_score(truth, predicted, multioutput="variance_weighted")
    found = local.score(encoder._network, videos, Split(everything, everything), CPU)
    assert found == pytest.approx(pooled, abs=1e-5)


def test_accuracy_is_none_without_held_out_images(cache: Path) -> None:
    assert opened("local:tiny", Squares(), held_out=0.0).accuracy is None
