"""Network inputs and pictures of samples: the position of every value."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.config.evaluation_spec import EvalSpec
from harness.errors import UserError
from harness.evaluation.checks import KINDS, check_metrics
from harness.evaluation.inputs import network_inputs
from harness.evaluation.sample_grid import enlargement, picture

VIDEO, SOUND = (1, 3, 4, 5), (6, 8)


def numbers(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_network_inputs_of_video_have_frames_before_channels() -> None:
    x = numbers(2, *VIDEO)
    clips = network_inputs(x, [VIDEO], "video")
    assert clips.shape == (2, 3, 1, 4, 5)
    assert all(torch.equal(clips[:, t], x[:, :, t]) for t in range(3))


def test_network_inputs_add_a_channel_to_sound_and_keep_images() -> None:
    sound, image = numbers(2, *SOUND), numbers(2, 3, 4, 5)
    assert torch.equal(network_inputs(sound, [SOUND], "image")[:, 0], sound)
    assert torch.equal(network_inputs(image, [(3, 4, 5)], "image"), image)


def test_network_inputs_select_the_part_of_a_joint_sample() -> None:
    video, sound = numbers(2, *VIDEO), numbers(2, *SOUND)
    both = torch.cat([video.flatten(1), sound.flatten(1)], dim=1)
    assert torch.equal(network_inputs(both, [VIDEO, SOUND], "video"), video.transpose(1, 2))
    assert torch.equal(network_inputs(both, [VIDEO, SOUND], "image"), sound[:, None])
    with pytest.raises(ValueError, match="is video"):
        network_inputs(sound, [SOUND], "video")


@pytest.mark.parametrize("modality", KINDS)
def test_check_metrics_rejects_a_network_of_another_modality(modality: str) -> None:
    expected = {"image": "images", "video": "video", "audio": "recordings"}
    for kind, extractor in (("image", "local"), ("video", "video:local"), ("audio", "local-audio")):
        spec = EvalSpec(metrics=(f"fd:{extractor}",))
        if kind in KINDS[modality]:
            assert check_metrics(spec, object(), modality)[0].extractor == extractor
        else:
            with pytest.raises(
                UserError, match=f"'{extractor}' expects {expected[kind]}, but this run generates"
            ):
                check_metrics(spec, object(), modality)


def test_picture_shows_sound_below_the_frames_of_a_video() -> None:
    video, sound = numbers(3, *VIDEO), numbers(3, *SOUND)
    both = torch.cat([video.flatten(1), sound.flatten(1)], dim=1).numpy()
    factor = enlargement(VIDEO)
    shown = picture(both, [VIDEO, SOUND])[::factor, ::factor]
    assert shown.shape == (3 * (4 + 6) + 2, 3 * 5)
    for n in range(3):
        block = shown[n * 11 : n * 11 + 10]
        assert all(np.array_equal(block[:4, 5 * t : 5 * t + 5], video[n, 0, t]) for t in range(3))
        assert np.array_equal(block[4:, 0], sound[n].flip(0)[:, 0])
        assert np.array_equal(block[4:, 14], sound[n].flip(0)[:, 14 * 8 // 15])


def test_picture_shows_sound_with_low_bands_at_the_bottom() -> None:
    sound = numbers(2, *SOUND)
    factor = enlargement(SOUND)
    shown = picture(sound.numpy(), [SOUND])[::factor, ::factor]
    assert shown.shape == (6, 17) and np.array_equal(shown[:, :8], sound[0].flip(0).numpy())
