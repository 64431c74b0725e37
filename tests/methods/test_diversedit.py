"""DiverseDiT's loss against released code and against its formulas in float64 numpy, and its weight.

The expected numbers are those of kobeshegu/DiverseDiT 5fedda1 on a CPU, retyped from a stored copy, with the
features of `common_and_own`: `compute_block_diversity_loss` of `SILoss(block_diversity_loss=True,
encoder_depth=8)` in loss.py, times its `block_diversity_loss_coeff` of train.py, and the gradient of that.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.backbone.network import Prediction
from harness.backbone.sit import SiTConfig
from harness.backbone.sizes import Size
from harness.config.backbone_spec import BackboneSpec
from harness.flow.student import Student
from harness.runtime.random_streams import Streams
from methods.diversedit import DiverseDiT, dispersion, falling_weight
from tests.support.filled import filled
from tests.support.small_methods import batch, build, f64, loss, student, unit


def diversity(blocks: dict[int, np.ndarray], pairs: list[tuple[int, int]]) -> float:
    """Return D of features (B, T, D) by block."""
    flat = {layer: block.reshape(-1, block.shape[-1]) for layer, block in blocks.items()}
    orthogonality = [unit(flat[i].mean(0)) @ unit(flat[j].mean(0)) for i, j in pairs]
    information = [abs((unit(flat[i]) * unit(flat[j])).sum(1).mean()) for i, j in pairs]
    usage = np.mean([np.abs(unit(block, axis=0)).mean(0) for block in flat.values()], axis=0)
    spread = min(1, 4 * (usage / usage.max()).var())
    return (np.mean(orthogonality) + np.mean(information) - spread) / 3


def common_and_own(share: float) -> dict[int, Tensor]:
    """Return features of 12 blocks, (2, 5, 6), with a common part; one token uses half of the channels."""
    blocks = {}
    for layer in range(1, 13):
        h = share * filled("common", (2, 5, 6)).square() + filled(f"block{layer}", (2, 5, 6))
        h[:, 1:, :3] = 0
        blocks[layer] = h.requires_grad_()
    return blocks


@pytest.mark.parametrize(
    ("share", "expected", "gradients"),
    [
        (0.5, 0.04700234904885292, (2.4756031036376953, 0.4784142076969147)),
        (2.0, 0.20996084809303284, (1.7482277154922485, 0.36608147621154785)),
        (10.0, 0.53978031873703, (0.26631349325180054, 0.06455443799495697)),
    ],
)
def test_loss_and_its_gradient_equal_those_of_released_code(
    share: float, expected: float, gradients: tuple[float, float]
) -> None:
    """With the falling weight and above it; gradients are sums of sizes, of blocks 2 and 12."""
    backbone = SiTConfig(Size(12, 6, 2), 2, (3, 4, 4), 4)
    method = DiverseDiT.build(DiverseDiT.Config(group=2).resolved(BackboneSpec(size="B")), backbone)
    hidden, given = common_and_own(share), batch(2)
    pupil = Student(torch.nn.Identity(), None, backbone)
    draw = method.draw(Streams(0), given)
    align = method.align(pupil, given, draw, Prediction(given.x0, hidden))
    align.backward()
    assert align.item() == pytest.approx(expected, abs=1e-6)
    found = [hidden[layer].grad.abs().sum().item() for layer in (2, 12)]
    assert found == pytest.approx(gradients, rel=1e-4)


def c(value: float) -> float:
    return 1 if value > 0.5 else max(0, (value - 0.1) / 0.5)


def test_loss_is_the_mean_over_groups_of_three_terms() -> None:
    config = DiverseDiT.Config(group=4, coefficient=0.3).resolved(BackboneSpec(size="pico"))
    losses, _, _, _, prediction = loss(build(DiverseDiT, **config.model_dump(exclude={"name", "schedule"})))
    hidden = {layer: f64(prediction.hidden[layer]) for layer in (1, 2, 3, 4)}
    pairs = list(itertools.combinations((2, 3, 4), 2))
    values = [diversity({k: h[part] for k, h in hidden.items()}, pairs) for part in (slice(4), slice(4, 8))]
    expected = np.mean([c(value) * value for value in values])
    assert losses.parts["align"].item() == pytest.approx(expected, rel=1e-4)
    assert losses.total.item() == pytest.approx(losses.parts["flow"].item() + 0.3 * expected, rel=1e-5)
    assert max(values) > 0.1


def test_weight_is_that_of_the_released_training_loop() -> None:
    values = torch.tensor([-0.3, 0.1, 0.2, 0.5, 0.51, 0.9])
    assert falling_weight(values).tolist() == pytest.approx([0, 0, 0.2, 0.8, 1, 1], abs=1e-6)


def test_first_ten_pairs_are_those_of_the_second_block() -> None:
    """Released for 12 blocks with REPA at block 8: `range(10 - 8 - 1, ...)`, counted from 0."""
    config = DiverseDiT.Config().resolved(BackboneSpec(size="B"))
    assert config.first_layer == 2 and config.layers == tuple(range(1, 13))
    later = [layer for layer in config.layers if layer >= config.first_layer]
    assert list(itertools.combinations(later, 2))[: config.pairs] == [(2, j) for j in range(3, 13)]


def test_blocks_with_one_used_channel_have_the_largest_dispersion() -> None:
    """Usage of (1, 0) has the variance 1/4 of a distribution on two points."""
    used = torch.zeros(1, 2, 3, 2)
    used[..., 0] = 1
    assert dispersion([used, 3 * used]).item() == pytest.approx(-1)
    assert dispersion([torch.ones(1, 2, 3, 2)]).item() == pytest.approx(0, abs=1e-6)


def test_micro_batches_of_whole_groups_have_the_mean_of_the_batch() -> None:
    pupil, method = student(), build(DiverseDiT, layers=(1, 2, 4), first_layer=1, group=4)

    def align(size: int, first: int) -> float:
        given = batch(size, first)
        return method.loss(pupil, given, method.draw(Streams(0), given)).parts["align"].item()

    assert np.mean([align(4, 0), align(4, 4)]) == pytest.approx(align(8, 0), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": (2, 1)}, r"layers = \[2, 1\]: list two or more"),
        ({"layers": (3,)}, r"layers = \[3\]: list two or more"),
        ({"layers": (1, 9)}, "layers = 9: backbone pico has layers 1 to 4"),
        ({"first_layer": 4}, "first_layer = 4: is not one of the blocks before the last one, 1, 2, 3"),
    ],
)
def test_impossible_blocks_are_rejected(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiverseDiT.Config(**settings).resolved(BackboneSpec(size="pico"))
