"""Optimizers: each updates a network by the rule of its paper, is counted, and continues to the same bits.

Closed forms are those of the first step, in float64.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from harness.assembly.resolve import load_spec
from harness.costs.disk import disk_bytes
from harness.costs.flops import count_spec
from harness.costs.memory import footprint
from harness.errors import UserError
from harness.records import checkpoint, checkpoint_files
from harness.train.loop import train
from harness.train.optimizer import build_optimizer, check_optimizer
from harness.train.progress import Quiet
from tests.support.runs import losses, tiny, trained, weights

RATE, DECAY = 1e-2, 0.1
SETTINGS = (f"train.learning_rate={RATE}", f"train.weight_decay={DECAY}")
MATRIX, EMBEDDING, VECTOR = "model.blocks.0.mlp.fc1.weight", "model.y_embedder.weight", "model.blocks.0.bias"


def parameters() -> dict[str, nn.Parameter]:
    """Return one parameter of each kind, with a gradient."""
    generator = torch.Generator().manual_seed(0)
    shapes = {MATRIX: (48, 16), EMBEDDING: (5, 16), VECTOR: (16,)}
    made = {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}
    for parameter in made.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return made


def stepped(*settings: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return for each parameter its gradient and its update per learning rate, without weight decay."""
    learned = parameters()
    before = {name: p.detach().double().numpy().copy() for name, p in learned.items()}
    gradients = {name: p.grad.double().numpy() for name, p in learned.items() if p.grad is not None}
    build_optimizer(tiny(*SETTINGS, *settings), learned).step()
    return {
        name: (
            gradients[name],
            (before[name] * (1 - RATE * DECAY) - p.detach().double().numpy()) / RATE,
        )
        for name, p in learned.items()
    }


@pytest.mark.parametrize(
    ("adjust", "factor"), [("match_rms_adamw", 0.2 * math.sqrt(48)), ("original", math.sqrt(3))]
)
def test_muon_orthogonalises_matrices_of_blocks_and_leaves_the_rest_to_adamw(
    adjust: str, factor: float
) -> None:
    found = stepped("optimizer.name=muon", f"optimizer.adjust_lr={adjust}")
    gradient, update = found[MATRIX]
    u, _, vt = np.linalg.svd(gradient, full_matrices=False)
    inner = u.T @ (update / factor) @ vt.T
    # Five iterations bring singular values to about 0.7 to 1.2, and keep the singular vectors.
    assert np.all((np.diag(inner) > 0.6) & (np.diag(inner) < 1.3))
    assert np.abs(inner - np.diag(np.diag(inner))).max() < 0.03
    for name in (EMBEDDING, VECTOR):
        gradient, update = found[name]
        np.testing.assert_allclose(update, np.sign(gradient), rtol=1e-3)


def test_adam_atan2_has_the_quotient_of_adam_as_an_angle() -> None:
    pytest.importorskip("adam_atan2_pytorch", reason="needs the extra optimizers")
    for gradient, update in stepped("optimizer.name=adam_atan2").values():
        # m / sqrt(v) is 1 or -1 in the first step, and the published factor is 1.27.
        np.testing.assert_allclose(update, 1.27 * math.pi / 4 * np.sign(gradient), rtol=1e-3)


def test_adam_atan2_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "adam_atan2_pytorch", None)
    with pytest.raises(UserError, match=r"optimizer\.name = adam_atan2 needs .*flowrace\[optimizers\]"):
        check_optimizer(tiny("optimizer.name=adam_atan2"))


def test_muon_is_counted_by_its_products_and_keeps_one_tensor_for_a_matrix() -> None:
    adamw, muon = (tiny(f"optimizer.name={name}") for name in ("adamw", "muon"))
    # pico: four blocks of width 64 with qkv, proj, fc1, fc2 and six modulations.
    shapes = 4 * [(192, 64), (64, 64), (256, 64), (64, 256), (384, 64)]
    products = sum(5 * (4 * min(s) ** 2 * max(s) + 2 * min(s) ** 3) for s in shapes)
    inside = sum(math.prod(shape) for shape in shapes)
    plain, found = count_spec(adamw).per_step, count_spec(muon).per_step
    assert found["optimizer"] == plain["optimizer"] - 15 * inside + 14 * inside + products
    assert {**found, "optimizer": 0} == {**plain, "optimizer": 0}
    assert footprint(adamw).optimizer - footprint(muon).optimizer == 4 * inside
    kept = [disk_bytes(spec, count_spec(spec)) for spec in (adamw, muon)]
    assert kept[0] - kept[1] == 2 * 4 * inside


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (("optimizer.name=muon", "runtime.shard=true"), r"'muon' does not support runtime\.shard = true"),
        (("optimizer.momentum=0.9",), r"optimizer\.momentum = 0.9 is read only with .*'muon'"),
        (("optimizer.name=sgd",), r"optimizer\.name = \"sgd\": .*'adamw', 'muon'"),
    ],
)
def test_optimizer_that_does_not_suit_is_rejected(settings: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_spec("digits", settings)


def test_optimizer_is_another_trajectory_only_if_it_is_set() -> None:
    plain, ids = load_spec("digits"), {load_spec("digits", ["optimizer.name=muon"]).id}
    assert (
        load_spec("digits", ["optimizer.name=adamw"]).id == plain.id and "optimizer" not in plain.trajectory
    )
    ids |= {load_spec("digits", ["optimizer.name=muon", "optimizer.momentum=0.9"]).id, plain.id}
    assert len(ids) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("quick_networks")
@pytest.mark.parametrize("name", ["muon", "adam_atan2"])
def test_run_that_continues_has_the_same_bits(tmp_path: Path, name: str) -> None:
    if name == "adam_atan2":
        pytest.importorskip("adam_atan2_pytorch", reason="needs the extra optimizers")
    # With the decay of the learning rate that knows no last step.
    chosen = (f"optimizer.name={name}", "train.decay=inverse_sqrt", "train.decay_after=4")
    unbroken = trained(tiny(*chosen), tmp_path / "unbroken")
    trained(tiny(*chosen, "train.steps=5"), tmp_path / "broken")
    continued = trained(tiny(*chosen), tmp_path / "broken")
    assert weights(continued) == weights(unbroken)
    assert losses(unbroken) != losses(trained(tiny(), tmp_path / "adamw"))
    file = checkpoint_files.checkpoints(continued.path / "checkpoints")[-1]
    kinds = {key.rpartition(".")[2] for key in checkpoint.load(file).part("optimizer")}
    assert kinds == {"exp_avg", "exp_avg_sq"} | ({"momentum_buffer", "step"} if name == "muon" else {"steps"})


def test_run_without_the_package_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "adam_atan2_pytorch", None)
    with pytest.raises(UserError, match="flowrace\\[optimizers\\]"):
        train(tiny("optimizer.name=adam_atan2"), tmp_path, Quiet())
    assert not list(tmp_path.iterdir())
