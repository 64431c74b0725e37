"""REED: its terms against released code and closed forms, its ramp of the flow loss, and its two encoders.

The expected numbers are those of ChenyuWang-Monica/REED 0a4527e on a CPU, with weights and draws of `filled`:
`SiT(input_size=8, patch_size=2, in_channels=3, hidden_size=16, decoder_hidden_size=16, depth=4, num_heads=2,
num_classes=4, encoder_depth=1, encoder_depth_text=m, z_dims=[6, 7], z_types=["i", "t"], projector_dim=8,
fused_attn=True, qk_norm=False).eval()` of image/models/sit.py, and `SILoss(enc_names=["dinov2", "qwen"],
loss_weights=...)(net, x, dict(y=y), zs=[features, caption])` of image/loss.py, where `torch.rand` and
`torch.randn_like` return t and eps. `caption` is a vector in place of the embedding of Qwen2-VL.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.backbone.sit import SiT, SiTConfig
from harness.backbone.sizes import Size
from harness.backbone.times import Times
from harness.config.backbone_spec import BackboneSpec
from harness.flow.batch import Batch, Draw, View
from harness.flow.gradients import separate_gradients
from harness.flow.path import interpolate
from harness.flow.student import Student
from harness.runtime.random_streams import Streams
from methods.reed import Reed
from tests.support.filled import fill, filled
from tests.support.runs import tiny, trained
from tests.support.small_methods import CONFIG, STREAMS, batch, f64, student, unit

BACKBONE: SiTConfig = CONFIG


def reed(**settings: object) -> Reed:
    config = Reed.Config(layer=1, pooled_layer=3, projector_width=16, **settings)
    method = Reed.build(config.resolved(BackboneSpec(size="pico")), BACKBONE, encoder_dims=(24, 7))
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            parameter.copy_(0.1 * Streams(0).normal(name, [0], parameter.shape)[0])
    return method


def given(step: int = 1):
    one = batch(8)
    second = View(STREAMS.normal("second", one.index, (CONFIG.tokens, 7)))
    return replace(one, views=(*one.views, second), step=step)


@torch.no_grad()
@pytest.mark.parametrize(
    ("pooled_layer", "weights", "expected"),
    [
        (3, (1.0, 0.5), 0.03056098334491253),
        (3, (0.3, 2.0), 0.14587169885635376),
        # Both terms at one layer.
        (1, (1.0, 0.5), 0.030734369531273842),
    ],
)
def test_losses_equal_those_of_released_code(
    pooled_layer: int, weights: tuple[float, float], expected: float
) -> None:
    """At step 31 of a ramp over 40 steps, `_diffusion_loss_decay` of train.py is 30 / 40."""
    backbone, (image, pooled) = SiTConfig(Size(4, 16, 2), 2, (3, 8, 8), 4), weights
    config = Reed.Config(layer=1, pooled_layer=pooled_layer, projector_width=8, flow_warmup=40)
    config = config.model_copy(update={"image_weight": image, "pooled_weight": pooled})
    method, net = Reed.build(config, backbone, encoder_dims=(6, 7)), SiT(backbone)
    fill(net)
    fill(method)
    labels, views = torch.tensor([1, 3]), (filled("features", (2, 16, 6)), filled("caption", (2, 7))[:, None])
    x0, noise = filled("x", (2, 3, 8, 8)), 3 * filled("eps", (2, 3, 8, 8))
    one = Batch(np.arange(2), x0, labels, labels, step=31, views=tuple(map(View, views)))
    draw = Draw(noise, Times.per_sample(torch.tensor([0.3, 0.8])))
    losses = method.loss(Student(net, None, backbone), one, draw)
    assert losses.parts["flow"].item() == pytest.approx(1.3230829238891602, abs=1e-6)
    assert losses.parts["align"].item() == pytest.approx(expected, abs=1e-6)
    assert losses.total.item() == pytest.approx(0.75 * 1.3230829238891602 + 0.5 * expected, abs=1e-6)


def test_loss_has_a_term_of_tokens_and_a_term_of_means() -> None:
    method, pupil, one = reed(coefficient=0.4, flow_warmup=10), student(), given(step=4)
    draw = method.draw(Streams(0), one)
    x = interpolate(one.x0, draw.noise, draw.times, CONFIG)
    hidden = pupil(x, draw.times, one.y, taps=(1, 3)).hidden
    z, second = (f64(view.tokens) for view in one.views)
    image = -(unit(f64(method.projectors[0](hidden[1]))) * unit(z)).sum(-1).mean()
    mean = f64(method.pooled_projector(hidden[3].mean(dim=1)))
    pooled = -(unit(mean) * unit(second.mean(1))).sum(-1).mean()
    losses = method.loss(pupil, one, draw)
    assert losses.parts["align"].item() == pytest.approx(image + 0.5 * pooled, abs=1e-6)
    expected = 0.3 * losses.parts["flow"].item() + 0.4 * (image + 0.5 * pooled)
    assert losses.total.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("step", "weight"), [(1, 0.0), (2, 1 / 50_000), (25_001, 0.5), (50_001, 1), (10**6, 1)]
)
def test_flow_loss_is_ramped_up_as_in_the_release(step: int, weight: float) -> None:
    """`global_step / diffusion_warm_up_steps`, where the first step is 0 (image/train.py)."""
    assert Reed.Config().flow_weight(step) == pytest.approx(weight)


def test_layers_of_xl_are_the_released_ones() -> None:
    config = Reed.Config().resolved(BackboneSpec(size="XL"))
    assert (config.layer, config.pooled_layer) == (8, 16)
    assert config.needs().taps == (8, 16) and len(config.needs().encoders) == 2
    alone = config.model_copy(update={"pooled_weight": 0.0})
    assert alone.needs().taps == (8,) and alone.needs().encoders == (config.encoder,)


def test_separate_gradients_add_up_to_that_of_the_total() -> None:
    """The gradient of the flow loss is that of the loss with its weight."""
    method, pupil, one = reed(flow_warmup=10), student(), given(step=4)
    draw = method.draw(Streams(0), one)
    method.loss(pupil, one, draw).total.backward()
    found = separate_gradients(method, pupil, one, draw)
    assert found.auxiliary is not None
    for flow, other, parameter in zip(found.flow, found.auxiliary, pupil.model.parameters(), strict=True):
        torch.testing.assert_close(flow + other, parameter.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_networks")
def test_run_has_the_weights_of_both_encoders_in_its_record(tmp_path: Path) -> None:
    words = ("method.name=reed", "method.encoder.name=random:small", "method.pooled_encoder.name=random:tiny")
    spec = tiny(*words, "method.flow_warmup=4", "train.steps=4")
    record = trained(spec, tmp_path)
    assert [one["name"] for one in record.environment[0]["encoders"]] == ["random:small", "random:tiny"]
    lines = record.of("train")
    for line, weight in ((lines[0], 0.0), (lines[-1], 0.75)):
        losses = line["losses"]
        assert line["loss"] == pytest.approx(weight * losses["flow"] + 0.5 * losses["align"], rel=1e-5)
    elsewhere = tiny(*words, "method.flow_warmup=4", "train.steps=4", "method.pooled_encoder.download=true")
    assert elsewhere.id == spec.id != tiny(*words, "train.steps=4").id
