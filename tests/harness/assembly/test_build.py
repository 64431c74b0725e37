"""The builder returns the final backbone: extra token, checkpointing and compilation included."""

from __future__ import annotations

import pytest
import torch

from harness.assembly.build import backbone_config, build_backbone, encoder_architectures, weightless
from harness.assembly.resolve import load_spec
from harness.backbone.sit import SiT, SiTConfig
from harness.backbone.sizes import SIZES
from harness.backbone.times import Times
from harness.config.spec import RuntimeSpec
from harness.data.open import outlined
from harness.errors import UserError

CONFIG = SiTConfig(SIZES["pico"], 2, (1, 8, 8), 10)


def is_compiled(model: SiT) -> list[bool]:
    return [block._compiled_call_impl is not None for block in model.blocks]


@pytest.mark.parametrize("encoder", ["local:small", "random:tiny"])
def test_backbone_config_has_a_token_of_the_encoders_width_for_reg(encoder: str) -> None:
    spec = load_spec("digits", ["method.name=reg", f"method.encoder.name={encoder}"])
    dataset = outlined(spec.data)
    (architecture,) = encoder_architectures(spec, dataset)
    config = backbone_config(spec, dataset)
    assert config.extra == architecture.dim > 0
    with torch.device("meta"):
        x, y = torch.empty(2, *config.x_shape), torch.zeros(2, dtype=torch.int64)
        extra, times = torch.empty(2, config.extra), Times.per_sample(torch.zeros(2))
    prediction = weightless(config)(x, times, y, extra=extra)
    assert prediction.velocity.shape == x.shape and prediction.extra.shape == extra.shape


@pytest.mark.parametrize("method", ["flow", "repa"])
def test_backbone_config_has_no_extra_token_for_other_methods(method: str) -> None:
    spec = load_spec("digits", [f"method.name={method}"])
    assert not backbone_config(spec, outlined(spec.data)).extra


def test_backbone_config_rejects_a_patch_that_does_not_divide_the_image() -> None:
    spec = load_spec("digits", ["backbone.patch=3"])
    with pytest.raises(UserError, match=r"patch = 3x3 does not divide .*; choose another backbone\.patch"):
        backbone_config(spec, outlined(spec.data))


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_build_backbone_applies_the_runtime(checkpoint: bool, compiled: bool) -> None:
    model = build_backbone(CONFIG, RuntimeSpec(checkpoint_activations=checkpoint, compile=compiled))
    assert model.checkpoint_activations is checkpoint
    assert is_compiled(model) == [compiled] * len(model.blocks)


@pytest.mark.parametrize("compiled", [False, True])
def test_build_backbone_copies_weights_and_applies_the_runtime_of_the_copy(compiled: bool) -> None:
    original = build_backbone(CONFIG, RuntimeSpec(compile=not compiled, checkpoint_activations=True))
    copy = build_backbone(CONFIG, RuntimeSpec(compile=compiled), copy_of=original)
    assert is_compiled(copy) == [compiled] * len(copy.blocks) and not copy.checkpoint_activations
    assert is_compiled(original) == [not compiled] * len(copy.blocks)
    for name, weight in original.state_dict().items():
        assert torch.equal(weight, copy.state_dict()[name])
        assert weight.data_ptr() != copy.state_dict()[name].data_ptr()


def test_weightless_has_the_parameters_of_the_network_without_memory() -> None:
    shapes = {name: weight.shape for name, weight in SiT(CONFIG).named_parameters()}
    model = weightless(CONFIG)
    assert {name: weight.shape for name, weight in model.named_parameters()} == shapes
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
