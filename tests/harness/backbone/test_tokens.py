"""Tokens, compared with plain slicing; one-frame videos with images; several parts with each part alone."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.backbone.initialize import initialize
from harness.backbone.sit import SiT, SiTConfig
from harness.backbone.sizes import Size
from harness.backbone.times import Times
from harness.backbone.tokens import Part, patchify, positions, sincos, unpatchify
from harness.runtime.random_streams import Streams
from tests.support.networks import network

SIZE = Size(2, 32, 2)
VIDEO = SiTConfig(SIZE, 2, (1, 4, 4, 6), 3)
SOUND = Part((3, 8), (2,))
JOINT = SiTConfig(SIZE, 2, (1, 4, 4, 6), 3, beside=(SOUND,))

parts = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3).flatmap(
    lambda axes: st.integers(1, 3).map(
        lambda channels: Part((channels, *(grid * patch for grid, patch in axes)), tuple(p for _, p in axes))
    )
)


def numbers(*shape: int) -> torch.Tensor:
    return torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(parts)
def test_patchify_and_unpatchify_round_trip(part: Part) -> None:
    x = numbers(2, *part.shape)
    tokens = patchify(x, part.patch)
    assert tokens.shape == (2, part.tokens, part.token_values)
    values = tokens.reshape(2, part.tokens, part.shape[0], -1).transpose(2, 3).flatten(2)
    assert torch.equal(unpatchify(values, part.patch, part.axes), x)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(parts)
def test_patchify_puts_a_patch_into_each_token(part: Part) -> None:
    """Plain slicing gives the values of every token."""
    x, tokens = numbers(1, *part.shape), patchify(numbers(1, *part.shape), part.patch)
    for t, place in enumerate(itertools.product(*map(range, part.grid))):
        cut = tuple(slice(i * p, (i + 1) * p) for i, p in zip(place, part.patch, strict=True))
        assert torch.equal(tokens[0, t], x[0][(slice(None), *cut)].flatten())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(parts)
def test_spread_gives_every_value_that_of_its_token(part: Part) -> None:
    values = numbers(2, part.tokens)
    spread = part.spread(values).expand(-1, *part.shape)
    assert torch.equal(patchify(spread, part.patch), values[:, :, None].expand(-1, -1, part.token_values))
    assert part.spread(numbers(2, 1)).shape == (2, 1, *[1] * len(part.axes))


@pytest.mark.parametrize(
    ("shape", "patch", "message"),
    [
        ((1, 7, 8), (2, 2), "does not divide the image size 7x8"),
        ((1, 3, 8, 8), (2, 2, 2), "does not divide the video size 3x8x8"),
        ((8, 31), (2,), "does not divide the audio size 31"),
        ((1, 8, 8), (2,), "does not fit a sample with 2 axes"),
        ((1,), (), "1 to 3"),
    ],
)
def test_part_is_rejected_when_the_patch_does_not_fit(
    shape: tuple[int, ...], patch: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Part(shape, patch)


@pytest.mark.parametrize("grid", [(16,), (5, 7), (4, 3, 5), (8, 4, 4)])
def test_positions_are_unique_and_bounded(grid: tuple[int, ...]) -> None:
    code = sincos(64, grid)[0]
    assert code.shape == (math.prod(grid), 64) and code.abs().max() <= 1
    assert torch.cdist(code, code).fill_diagonal_(1.0).min() > 0.05


def test_positions_of_a_video_are_those_of_its_frames_and_of_time() -> None:
    code = sincos(64, (4, 3, 5)).reshape(4, 3, 5, 64)
    frame = sincos(48, (3, 5)).reshape(3, 5, 48)
    assert torch.equal(code[..., :48], frame.expand(4, -1, -1, -1))
    assert torch.equal(code[:, 0, 0, 48:], sincos(16, (4,))[0])


def test_positions_of_parts_share_one_clock() -> None:
    """A sound token that starts with a video frame has that frame's code of time; all codes are distinct."""
    code = positions(64, JOINT.parts)[0]
    video, sound = code[:24].reshape(4, 6, 64), code[24:]
    assert len(sound) == 4 and torch.equal(sound[:, 48:], video[:, 0, 48:]) and not sound[:, :48].any()
    assert torch.cdist(code, code).fill_diagonal_(1.0).min() > 0.05


def test_video_of_one_frame_equals_an_image_bit_for_bit() -> None:
    image, video = SiT(SiTConfig(SIZE, 2, (3, 8, 12), 5)), SiT(SiTConfig(SIZE, 2, (3, 1, 8, 12), 5))
    for model in (image, video):
        initialize(model, Streams(3))
    filled = network(image.config)
    for model in (image, video):
        model.load_state_dict(filled.state_dict())
    x, t, y = Streams(0).normal("x", range(4), (3, 8, 12)), torch.rand(4), torch.arange(4)
    one = image(x, Times.per_sample(t), y).velocity
    other = video(x[:, :, None], Times.per_sample(t), y).velocity
    assert one.any() and torch.equal(one, other[:, :, 0])
    one.square().sum().backward()
    other.square().sum().backward()
    pairs = zip(image.parameters(), video.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs)


def test_patch_embedding_equals_a_matrix_product_with_each_patch() -> None:
    """Each modality is compared with patchify and a matrix product."""
    for shape, patch in (((2, 4, 6), (2, 2)), ((2, 6, 4, 6), (3, 2, 2)), ((5, 12), (3,))):
        config = SiTConfig(SIZE, patch[-1], shape, 3, patch_time=patch[0] if len(patch) == 3 else 1)
        embed = network(config).x_embedder
        x = Streams(1).normal("x", range(3), shape)
        weight = embed.proj.weight.flatten(1)
        # In the weight, the frames of a token follow each channel of the data.
        if len(patch) == 3:
            weight = embed.proj.weight.unflatten(1, (shape[0], patch[0])).flatten(1)
        expected = patchify(x, config.parts[0].patch) @ weight.T + embed.proj.bias
        torch.testing.assert_close(embed(x), expected)


def test_parts_share_one_sequence() -> None:
    model = network(JOINT)
    assert JOINT.x_shape == (96 + 24,) and JOINT.tokens == 24 + 4
    x = Streams(2).normal("x", range(2), JOINT.x_shape)
    video, sound = JOINT.split_parts(x)
    assert video.shape == (2, 1, 4, 4, 6) and sound.shape == (2, 3, 8)
    assert torch.equal(torch.cat([video.flatten(1), sound.flatten(1)], dim=1), x)
    t, y = torch.rand(2), torch.arange(2)
    prediction = model(x, Times.per_sample(t), y, taps=(1,))
    assert prediction.velocity.shape == x.shape and prediction.hidden[1].shape == (2, 28, 32)
    # The velocity of the video depends on the sound.
    louder = torch.cat([x[:, :96], x[:, 96:] + 1], dim=1)
    changed = model(louder, Times.per_sample(t), y).velocity
    assert not torch.equal(changed[:, :96], prediction.velocity[:, :96])


def test_video_equals_a_network_without_sound_when_attention_is_separate() -> None:
    """With attention within groups, video tokens of a joint pass equal those of a video network."""
    joint, alone = network(JOINT), SiT(VIDEO).eval()
    alone.load_state_dict(
        {k: v for k, v in joint.state_dict().items() if "beside" not in k} | {"pos_embed": alone.pos_embed}
    )
    x, t, y = Streams(2).normal("x", range(2), JOINT.x_shape), torch.rand(2), torch.arange(2)
    groups = torch.cat([torch.zeros(2, 24), torch.ones(2, 4)], dim=1)
    together = joint(x, Times.per_sample(t), y, groups=groups).velocity
    torch.testing.assert_close(
        together[:, :96], alone(JOINT.split_parts(x)[0], Times.per_sample(t), y).velocity.flatten(1)
    )


def test_spread_accepts_a_separate_time_for_each_part() -> None:
    levels = torch.tensor([[0.25, 0.75]])
    which = torch.cat([torch.zeros(1, 24), torch.ones(1, 4)], dim=1).bool()
    spread = JOINT.spread(Times(levels, which).per_token_levels())
    assert spread.shape == (1, 120)
    np.testing.assert_array_equal(spread[0].numpy(), [0.25] * 96 + [0.75] * 24)


def test_config_rejects_other_parts_when_the_first_is_no_video() -> None:
    with pytest.raises(ValueError, match="only a video or a state has other parts"):
        SiTConfig(SIZE, 2, (1, 4, 6), 3, beside=(SOUND,))
