"""x-prediction: the velocity follows from the predicted clean sample as in JiT, at every token's own time.

The authority is JiT's formula in its own convention (arXiv 2511.13720): z = s x + (1 - s) e with s = 1 - t,
and v = (x_predicted - z) / max(1 - s, 0.05), which is minus our velocity.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from harness.backbone.config import BackboneConfig
from harness.backbone.embed import PatchEmbed
from harness.backbone.times import Times
from harness.backbone.tokens import Part
from harness.errors import UserError
from harness.exchange.convert import Weights, to_released
from harness.flow.samplers import euler, velocity_field
from tests.support.conformance import CONFIG, OF_TEXT, captions, network
from tests.support.runs import tiny
from tests.support.small_methods import f64

X_PREDICTING = replace(CONFIG, prediction="x")


def of_jit(clean: np.ndarray, z: np.ndarray, s: np.ndarray) -> np.ndarray:
    return (clean - z) / np.maximum(1 - s, 0.05)


def per_pixel(tau: torch.Tensor) -> np.ndarray:
    """Return the times of 16 tokens of 2x2 pixels in an 8x8 image."""
    return np.kron(f64(tau).reshape(-1, 1, 4, 4), np.ones((1, 1, 2, 2)))


@pytest.mark.parametrize("config", [CONFIG, OF_TEXT], ids=["sit", "mmdit"])
def test_velocity_is_that_of_jit_from_the_predicted_sample(config: BackboneConfig) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, *config.shape, generator=generator)
    tau = torch.rand(3, 16, generator=generator)
    tau[0, :3] = torch.tensor([0.0, 0.01, 1.0])
    index = np.arange(3)
    y = captions(index, config) or torch.from_numpy(index)
    names = {"outputs": (2,)}
    config = replace(config, **names)
    with torch.no_grad():
        plain = network(0, config)(x, Times.per_token(tau), y, taps=(1,), outputs=(2,))
        ours = network(0, replace(config, prediction="x"))(
            x, Times.per_token(tau), y, taps=(1,), outputs=(2,)
        )
    assert torch.equal(plain.hidden[1], ours.hidden[1])
    for clean, velocity in ((plain.velocity, ours.velocity), (plain.outputs[2], ours.outputs[2])):
        expected = -of_jit(f64(clean), f64(x), 1 - per_pixel(tau))
        np.testing.assert_allclose(f64(velocity), expected, rtol=1e-4, atol=1e-5)


def test_samples_of_a_network_that_knows_the_clean_sample_are_that_sample() -> None:
    model = network(0, X_PREDICTING).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        # One value for each pixel of a patch and channel.
        model.final_layer.linear.bias.copy_(torch.linspace(-1, 1, 12))
    noise = torch.randn(2, *CONFIG.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        v = velocity_field(model, torch.tensor([0, 1]), null=5, scale=2.0)
        # The last of 20 steps begins at 0.05, where the divisor is still the time.
        found = euler(v, noise, 20)
        clean = noise - v(noise, 1.0)
    torch.testing.assert_close(found.float(), clean, atol=1e-5, rtol=0)


def test_released_layout_rejects_a_network_that_predicts_x() -> None:
    with pytest.raises(UserError, match=r"flow\.prediction = 'x'"):
        to_released(Weights({}, {}, {}), X_PREDICTING, "sit")


@pytest.mark.parametrize("patch", [1, 8, 16, 32])
def test_bottleneck_is_a_linear_embedding_of_low_rank(patch: int) -> None:
    part = Part((3, 32, 32), (patch, patch))
    embed, plain = PatchEmbed(part, 24, bottleneck=5), PatchEmbed(part, 24)
    first, second = embed.reduce.weight.flatten(1), embed.proj.weight.flatten(1)
    with torch.no_grad():
        plain.proj.weight.copy_((second @ first).reshape(plain.proj.weight.shape))
        plain.proj.bias.copy_(embed.proj.bias)
        x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        found = embed(x)
        torch.testing.assert_close(found, plain(x), atol=1e-5, rtol=1e-4)
    assert found.shape == (2, (32 // patch) ** 2, 24) and embed.reduce.bias is None


def test_bottleneck_is_part_of_the_network_and_the_run_id_only_if_it_is_set() -> None:
    plain, unset = tiny(), tiny("backbone.bottleneck=0")
    narrow = tiny("backbone.bottleneck=7")
    assert plain.id == unset.id != narrow.id
    model = network(0, replace(X_PREDICTING, bottleneck=7))
    names = {name for name, _ in model.named_parameters()}
    assert names - {name for name, _ in network(0).named_parameters()} == {"x_embedder.reduce.weight"}
    velocity = model(torch.zeros(2, 3, 8, 8), Times.per_sample(torch.ones(2)), torch.tensor([0, 1])).velocity
    assert velocity.shape == (2, 3, 8, 8) and bool(velocity.isfinite().all())
