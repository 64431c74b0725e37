"""PixelREPA: its masked adapter against released code, what the adapter depends on, and its settings.

The expected numbers are those of kaist-cvml/PixelREPA 5181608 on a CPU: `Denoiser.forward_mta` of
denoiser_pixelREPA.py, whose `masked_transformer_adapter` is `MaskedTransformerAdapter(input_size=8,
patch_size=2, out_channels=..., hidden_size=16, depth=2, num_heads=2, in_context_len=4, num_classes=4)` of
model_pixelREPA.py with its initial blocks, which change no token, and tokens, features, mask token, mask and
projection of `filled`. `torch.Tensor.cuda` returns the tensor, `torch.rand` the mask, and
`TORCHDYNAMO_DISABLE=1`. Conditioned ones are those of `depth=1, in_context_len=0`, for which
`in_context_posemb` is set to an empty tensor, with weights of `filled`. JiT's block is SiT's if tokens have
mean 0, queries are 0, and the gate of its MLP is 0, so only these are compared.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from harness.assembly.build import backbone_config
from harness.backbone.initialize import initialize
from harness.backbone.network import Prediction
from harness.backbone.sit import SiTConfig
from harness.backbone.sizes import Size
from harness.backbone.times import Times
from harness.config.backbone_spec import BackboneSpec
from harness.config.method_config import Schedule
from harness.data.open import open_dataset
from harness.errors import UserError
from harness.flow.batch import Batch, Draw, View
from harness.flow.student import Student
from methods.common.method import Needs
from methods.pixelrepa import MASKED, MaskedAdapter, PixelRepa
from tests.support.conformance import STREAMS, batch, made, network
from tests.support.filled import fill, filled
from tests.support.runs import tiny

CONFIG = SiTConfig(Size(3, 16, 2), 2, (3, 8, 8), 4)
TOKENS = (2, 16, 16)
TIMES = Times.per_sample(torch.tensor([0.3, 0.8]))
LABELS = torch.tensor([1, 3])


@pytest.mark.parametrize(("dim", "expected"), [(16, 0.800284743309021), (12, 1.0012438297271729)])
def test_loss_equals_that_of_released_code(dim: int, expected: float) -> None:
    """Without a projection, since the widths are equal, and with it."""
    method = PixelRepa.build(PixelRepa.Config(layer=2), CONFIG, encoder_dims=(dim,))
    initialize(method, STREAMS)
    with torch.no_grad():
        method.adapters[0].mask_token.copy_(filled("mask_token", (16,)))
    fill(method.adapters[0].projection)
    x0, view = torch.zeros(2, 3, 8, 8), View(filled("features", (2, 16, dim)))
    given = Batch(np.arange(2), x0, LABELS, LABELS, views=(view,))
    masked = filled("mask", (2, 16)) / 0.6 + 0.5 <= 0.2
    draw = Draw(x0, TIMES, extra={MASKED: masked})
    prediction = Prediction(x0, {2: filled("hidden", TOKENS)})
    student = Student(network(0, CONFIG), None, CONFIG)
    assert method.align(student, given, draw, prediction).item() == pytest.approx(expected, abs=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(
    ("times", "labels", "expected"),
    [
        ([0.3, 0.8], [1, 3], 0.8290043473243713),
        ([0.8, 0.3], [1, 3], 0.8300594091415405),
        ([0.3, 0.8], [4, 0], 0.8269422650337219),
    ],
)
def test_conditioned_loss_equals_that_of_released_code(
    times: list[float], labels: list[int], expected: float
) -> None:
    """The embeddings of time and label modulate and gate an attention that is a mean over tokens."""
    method = PixelRepa.build(PixelRepa.Config(layer=2, blocks=1), CONFIG, encoder_dims=(16,))
    adapter, y = method.adapters[0], torch.tensor(labels)
    fill(adapter)
    adapter.mask_token.sub_(adapter.mask_token.mean())
    (block,) = adapter.blocks
    for linear, rows in ((block.attn.qkv, slice(16)), (block.adaLN_modulation[1], slice(80, None))):
        linear.weight[rows], linear.bias[rows] = 0, 0
    hidden, x0 = filled("hidden", TOKENS), torch.zeros(2, 3, 8, 8)
    masked = filled("mask", (2, 16)) / 0.6 + 0.5 <= 0.2
    draw = Draw(x0, Times.per_sample(torch.tensor(times)), extra={MASKED: masked})
    given = Batch(np.arange(2), x0, y, y, views=(View(filled("features", TOKENS)),))
    prediction = Prediction(x0, {2: hidden - hidden.mean(dim=2, keepdim=True)})
    student = Student(network(0, CONFIG), None, CONFIG)
    assert method.align(student, given, draw, prediction).item() == pytest.approx(expected, abs=1e-6)


@torch.no_grad()
def test_adapter_depends_on_time_label_place_and_tokens_that_are_not_masked() -> None:
    adapter = MaskedAdapter(CONFIG, 2, 12)
    for parameter in adapter.parameters():
        parameter.copy_(
            torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
        )
    h, masked = filled("hidden", TOKENS), torch.arange(16).expand(2, -1) % 5 == 0
    before = adapter(h, masked, TIMES, LABELS)
    assert torch.equal(before, adapter(torch.where(masked[:, :, None], h + 1, h), masked, TIMES, LABELS))
    others = (
        adapter(torch.where(masked[:, :, None], h, h.square()), masked, TIMES, LABELS),
        adapter(h, masked, Times.per_sample(torch.tensor([0.4, 0.9])), LABELS),
        adapter(h, masked, TIMES, LABELS - 1),
        adapter(h.flip(1), masked.flip(1), TIMES, LABELS).flip(1),
    )
    assert [bool(torch.isclose(other, before).all(dim=2).any()) for other in others] == 4 * [False]


def test_heads_that_are_too_narrow_for_positions_are_refused() -> None:
    """Two channels are one pair, and an image has two axes."""
    narrow = replace(CONFIG, size=Size(3, 16, 8))
    with pytest.raises(UserError, match=r"pixelrepa: .*a head of 2 channels cannot be divided among 2 axes"):
        PixelRepa.build(PixelRepa.Config(layer=2), narrow, encoder_dims=(12,))
    PixelRepa.build(PixelRepa.Config(layer=2, coefficient=0.0), narrow)
    rotary = tiny("backbone.size=2x8x4", "backbone.positions=rotary")
    with pytest.raises(UserError, match=r"backbone\.positions = rotary: a head of 2 channels .* to sincos"):
        backbone_config(rotary, open_dataset(rotary.data))


def test_share_of_masked_tokens_is_the_ratio() -> None:
    """Each token independently, as in the release; none is drawn after the last step with alignment."""
    method = made(PixelRepa, schedule=Schedule(until=3))
    early, late = (method.draw(STREAMS, batch(Needs(), 500, step=step)).extra for step in (3, 4))
    shares = early[MASKED].float().mean(dim=0)
    assert ((shares - 0.2).abs() < 4 * math.sqrt(0.2 * 0.8 / 500)).all() and not late


def test_mask_token_and_embeddings_start_as_released() -> None:
    """Normal draws of standard deviation 0.02, and blocks that change no token."""
    adapter = made(PixelRepa).adapters[0]
    for values in (
        adapter.mask_token,
        adapter.t_embedder.mlp[0].weight,
        adapter.y_embedder.embedding_table.weight,
    ):
        assert 0.012 < values.std().item() < 0.028
    assert not any(block.adaLN_modulation[1].weight.any() for block in adapter.blocks)
    assert (adapter.projection.norm.weight == 1).all()


def test_default_layer_is_that_before_the_released_class_tokens() -> None:
    layers = {size: PixelRepa.Config().resolved(BackboneSpec(size=size)).layer for size in ("B", "L")}
    assert layers == {"B": 4, "L": 8}
