"""The other objectives, compared with their formulas in float64 numpy, and pitfalls of their released
code."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from harness.backbone.times import Times
from harness.config.backbone_spec import BackboneSpec
from harness.flow.batch import Draw, View
from harness.flow.path import interpolate
from harness.runtime.random_streams import Streams
from methods.attention_separation import AttentionSeparation
from methods.common.alignment import ConvProjector, distance, mlp, relations, spatial_norm
from methods.contrastive_flow import ContrastiveFlow
from methods.diffusion_forcing import DiffusionForcing
from methods.dispersive import Dispersive, squared_distances
from methods.dual_timestep import DualTimestep
from methods.flow import Flow
from methods.full_masking import FullMasking
from methods.gram import Gram
from methods.irepa import IRepa
from methods.layersync import LayerSync
from methods.relational import Relational
from methods.repa import Repa
from methods.sra import Sra
from methods.sra2 import Sra2
from tests.support.small_methods import CONFIG, batch, build, f64, loss, student, unit


def smooth_l1(a: np.ndarray, b: np.ndarray, beta: float) -> np.ndarray:
    gap = np.abs(a - b)
    return np.where(gap < beta, 0.5 * gap**2 / beta, gap - 0.5 * beta)


def test_layersync_aligns_an_early_layer_with_a_later_one() -> None:
    losses, _, _, _, prediction = loss(build(LayerSync, student_layer=1, target_layer=3, coefficient=0.3))
    expected = -(unit(f64(prediction.hidden[1])) * unit(f64(prediction.hidden[3]))).sum(-1).mean()
    assert losses.parts["align"].item() == pytest.approx(expected, abs=1e-6)
    assert losses.total.item() == pytest.approx(losses.parts["flow"].item() + 0.3 * expected, abs=1e-5)


def test_layersync_stops_the_gradient_of_its_target() -> None:
    method = build(LayerSync, student_layer=1, target_layer=3)
    losses, pupil, *_ = loss(method)
    losses.parts["align"].backward()
    assert pupil.model.blocks[0].mlp.fc1.weight.grad is not None
    assert all(p.grad is None or not p.grad.any() for p in pupil.model.blocks[2].parameters())


@pytest.mark.parametrize("layers", [(3, 3), (4, 2)])
def test_layersync_rejects_a_target_that_is_not_later(layers: tuple[int, int]) -> None:
    """The released argparse default is layer 8 for both."""
    config = LayerSync.Config(student_layer=layers[0], target_layer=layers[1])
    with pytest.raises(ValueError, match="must be below"):
        config.resolved(BackboneSpec(size="S"))


def test_dispersive_is_the_log_of_a_mean_over_pairs() -> None:
    losses, _, _, _, prediction = loss(build(Dispersive, layer=2, temperature=0.7))
    z = f64(prediction.hidden[2]).reshape(8, -1)
    gaps = ((z[:, None] - z[None]) ** 2).sum(-1) / z.shape[1]
    assert losses.parts["align"].item() == pytest.approx(math.log(np.exp(-gaps / 0.7).mean()), abs=1e-5)


def test_dispersive_distances_equal_the_released_ones() -> None:
    """The release uses squared pdist twice, and B zeros for the diagonal: all ordered pairs."""
    z = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    halves = torch.pdist(z).pow(2)
    released = torch.cat([halves, halves, torch.zeros(6)])
    ours = squared_distances(z[None])[0]
    torch.testing.assert_close(ours.flatten().sort().values, released.sort().values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(squared_distances(z[None] + 1e4)[0], ours, rtol=0.02, atol=0.5)


@pytest.mark.parametrize("cls", [Dispersive, ContrastiveFlow])
def test_groups_give_the_same_mean_when_a_batch_is_divided_between_them(cls) -> None:
    """The mean over micro-batches of complete groups is the value of the batch; divided groups are
    rejected."""
    method, pupil = build(cls, group=4, **({"layer": 2} if cls is Dispersive else {})), student()

    def align(size: int, first: int) -> float:
        given = batch(size, first)
        return method.loss(pupil, given, method.draw(Streams(0), given)).parts["align"].item()

    assert np.mean([align(4, 0), align(4, 4)]) == pytest.approx(align(8, 0), rel=1e-5)
    assert np.mean([align(2, 0), align(2, 2)]) != pytest.approx(align(4, 0), rel=1e-5)
    with pytest.raises(ValueError, match="group = 4 does not divide"):
        align(6, 0)


def test_contrastive_flow_subtracts_the_error_to_the_neighbours_target() -> None:
    losses, _, given, draw, prediction = loss(build(ContrastiveFlow, coefficient=0.05))
    v, target = f64(prediction.velocity), f64(draw.noise - given.x0)
    contrast = ((v - np.roll(target, 1, axis=0)) ** 2).mean()
    assert losses.total.item() == pytest.approx(((v - target) ** 2).mean() - 0.05 * contrast, rel=1e-5)


def test_sra2_aligns_with_the_patches_of_x0() -> None:
    method = build(Sra2, layer=2, projector_width=20)
    losses, _, given, _, prediction = loss(method)
    projected = f64(method.projector(prediction.hidden[2]))
    x0 = f64(given.x0)
    patches = np.stack(
        [x0[:, :, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].reshape(8, -1) for r in range(4) for c in range(4)], 1
    )
    assert losses.parts["align"].item() == pytest.approx(smooth_l1(projected, patches, 0.05).mean(), rel=1e-5)
    assert len([m for m in method.projector if isinstance(m, torch.nn.Linear)]) == 5
    sizes = {width: sum(p.numel() for p in mlp(width, *[1440] * 4, 16).parameters()) for width in (768, 1152)}
    # The published size is about 8M.
    assert all(7e6 < size < 9e6 for size in sizes.values())


@pytest.mark.parametrize("similarity", ["smooth_l1", "cosine", "cosine_tokens"])
def test_sra_aligns_with_the_teacher_at_a_cleaner_time(similarity: str) -> None:
    method = build(Sra, student_layer=1, teacher_layer=3, similarity=similarity)
    losses, pupil, given, draw, prediction = loss(method)
    t, cleaner = draw.times.levels[:, 0], draw.extra["cleaner"]
    x = interpolate(given.x0, draw.noise, Times.per_sample(cleaner), CONFIG)
    a = f64(method.projector(prediction.hidden[1]))
    b = f64(pupil.ema(x, Times.per_sample(cleaner), given.y, taps=(3,)).hidden[3])
    expected = {
        "smooth_l1": lambda: smooth_l1(a, b, 0.05),
        "cosine": lambda: 1 - (unit(a) * unit(b)).sum(-1),
        "cosine_tokens": lambda: 1 - (unit(a, 1) * unit(b, 1)).sum(1),
    }[similarity]().mean()
    assert losses.parts["align"].item() == pytest.approx(expected, rel=1e-4)
    weight = 0.2 if similarity == "smooth_l1" else 0.5
    assert losses.total.item() == pytest.approx(losses.parts["flow"].item() + weight * expected, rel=1e-4)
    assert (cleaner <= t).all() and (t - cleaner <= 0.2).all() and (cleaner >= 0).all()


def test_cosine_over_tokens_differs_from_cosine_over_channels() -> None:
    """A feature that does not vary over tokens has |cos| = 1 over tokens and an ordinary cosine over
    channels."""
    a, b = torch.ones(2, 5, 1) * torch.randn(2, 1, 7), torch.ones(2, 5, 1) * torch.randn(2, 1, 7)
    over_tokens, over_channels = distance("cosine_tokens", a, b), distance("cosine", a, b)
    assert over_tokens.shape == (2, 7) and over_channels.shape == (2, 5)
    assert torch.allclose((1 - over_tokens).abs(), torch.ones(2, 7), atol=1e-5)
    assert not torch.allclose((1 - over_channels).abs(), torch.ones(2, 5), atol=1e-2)


def test_nt_xent_is_the_cross_entropy_over_tokens() -> None:
    a, b = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    logits = unit(f64(a)) @ unit(f64(b)).transpose(0, 2, 1) / 0.1
    expected = np.log(np.exp(logits).sum(-1)) - np.einsum("btt->bt", logits)
    assert distance("nt_xent", a, b).numpy() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    losses, *_ = loss(build(Repa, layer=1, similarity="nt_xent", projector_width=8))
    assert losses.parts["align"].item() > 0


@pytest.mark.parametrize("kernel", [1, 3])
def test_irepa_aligns_convolved_tokens_with_normalised_targets(kernel: int) -> None:
    method = build(IRepa, layer=2, kernel=kernel)
    losses, _, given, _, prediction = loss(method)
    hidden = f64(prediction.hidden[2]).reshape(8, 4, 4, 32)
    padded = np.pad(hidden, ((0, 0), (kernel // 2,) * 2, (kernel // 2,) * 2, (0, 0)))
    weight, bias = f64(method.projectors[0].conv.weight), f64(method.projectors[0].conv.bias)
    rows = [
        [
            np.einsum("bijd,odij->bo", padded[:, r : r + kernel, c : c + kernel], weight) + bias
            for c in range(4)
        ]
        for r in range(4)
    ]
    projected = np.stack([cell for row in rows for cell in row], axis=1)
    z = f64(given.views[0].tokens)
    target = (z - 0.6 * z.mean(1, keepdims=True)) / (z.std(1, ddof=1, keepdims=True) + 1e-6)
    assert losses.parts["align"].item() == pytest.approx(
        -(unit(projected) * unit(target)).sum(-1).mean(), abs=1e-5
    )
    # The default is the paper's; the released LDM command trains kernel 1.
    assert IRepa.Config().kernel == 3
    assert (
        sum(p.numel() for p in ConvProjector(32, 24, kernel, (4, 4)).parameters()) == 32 * 24 * kernel**2 + 24
    )


def test_spatial_norm_removes_mean_and_scale_over_tokens() -> None:
    y = torch.randn(3, 50, 6, generator=torch.Generator().manual_seed(0))
    normed = spatial_norm(y, 1.0)
    torch.testing.assert_close(normed.mean(1), torch.zeros(3, 6), atol=1e-5, rtol=0)
    torch.testing.assert_close(normed.std(1), torch.ones(3, 6), atol=1e-4, rtol=0)
    torch.testing.assert_close(normed, spatial_norm(7 * y + 3, 1.0), atol=1e-4, rtol=1e-4)


def relation(x: np.ndarray) -> np.ndarray:
    return unit(x) @ unit(x).transpose(0, 2, 1)


def test_relational_aligns_cosines_beyond_a_margin() -> None:
    losses, _, given, _, prediction = loss(build(Relational, layer=3, margin=0.1))
    gap = np.abs(relation(f64(prediction.hidden[3])) - relation(f64(given.views[0].tokens)))
    assert losses.parts["align"].item() == pytest.approx(np.maximum(gap - 0.1, 0).mean(), abs=1e-6)


def test_gram_aligns_autocorrelations_and_ignores_rotations() -> None:
    method = build(Gram, layer=3, projector_width=16)
    losses, _, given, _, prediction = loss(method)
    projected = f64(method.projectors[0](prediction.hidden[3]))
    assert losses.parts["align"].item() == pytest.approx(
        ((relation(projected) - relation(f64(given.views[0].tokens))) ** 2).mean(), abs=1e-6
    )
    rotated = torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64)).Q
    torch.testing.assert_close(
        relations(given.views[0].tokens @ rotated.float()),
        relations(given.views[0].tokens),
        atol=1e-5,
        rtol=1e-5,
    )


def test_default_layers_are_the_published_ones() -> None:
    layers = {
        (cls.__name__, size): tuple(
            getattr(cls.Config().resolved(BackboneSpec(size=size)), name)
            for name in ("layer", "student_layer", "teacher_layer", "target_layer")
            if hasattr(cls.Config(), name)
        )
        for cls in (Sra, Sra2, LayerSync, IRepa, Dispersive, AttentionSeparation)
        for size in ("B", "L", "XL")
    }
    assert [layers["Sra", s] for s in ("B", "L", "XL")] == [(3, 8), (6, 16), (8, 20)]
    assert [layers["Sra2", s] for s in ("B", "L", "XL")] == [(2,), (8,), (8,)]
    assert [layers["LayerSync", s] for s in ("L", "XL")] == [(8, 18), (8, 16)]
    assert [layers["IRepa", s] for s in ("B", "L", "XL")] == [(4,), (8,), (8,)]
    assert layers["Dispersive", "XL"] == (7,)
    assert layers["AttentionSeparation", "B"] == (3, 8)


def test_methods_share_noise_and_first_time_with_flow() -> None:
    base = build(Flow).draw(Streams(9), batch())
    for cls in (Sra, AttentionSeparation, DualTimestep, FullMasking, Dispersive, LayerSync, DiffusionForcing):
        settings = {"student_layer": 1, "teacher_layer": 2} if cls in (Sra, AttentionSeparation) else {}
        draw: Draw = build(cls, **settings).draw(Streams(9), batch())
        assert torch.equal(draw.noise, base.noise)
        if cls is not DiffusionForcing:
            assert torch.equal(draw.times.levels[:, 0], base.times.levels[:, 0])


def test_repa_averages_over_several_encoders() -> None:
    """Each encoder has its own projector; REPA's loss.py divides by len(zs)."""
    config = Repa.Config(layer=2, projector_width=16, further=({"name": "random:tiny"},))
    config = config.resolved(BackboneSpec(size="pico"))
    assert [encoder.name for encoder in config.needs().encoders] == [config.encoder.name, "random:tiny"]
    method, pupil, given = Repa.build(config, CONFIG, encoder_dims=(24, 7)), student(), batch(8)
    other = Streams(0).normal("other", given.index, (CONFIG.tokens, 7))
    given = replace(given, views=(*given.views, View(other)))
    draw = method.draw(Streams(0), given)
    hidden = pupil(
        interpolate(given.x0, draw.noise, draw.times, CONFIG), draw.times, given.y, taps=(2,)
    ).hidden[2]
    each = [
        -(unit(f64(projector(hidden))) * unit(f64(view.tokens))).sum(-1).mean()
        for projector, view in zip(method.projectors, given.views, strict=True)
    ]
    align = method.loss(pupil, given, draw).parts["align"]
    assert align.item() == pytest.approx(np.mean(each), abs=1e-6)
    assert each[0] != pytest.approx(each[1], abs=1e-3)
