"""Captions of bouncing digits: what their words state is what the equations of motion give."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from harness.config.data_spec import DataPart, DataSpec
from harness.data.dataset import Capabilities
from harness.data.generated.bounce import Bounce
from harness.data.generated.bounce_captions import Bounces, bounces, described
from harness.data.open import open_dataset
from harness.errors import UserError
from tests.harness.data.pictures import opened

FRAMES = 12
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
HOW_OFTEN = {"not once": 0, "once": 1, "twice": 2} | {f"{name} times": i for i, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def data() -> Bounce:
    return opened("bounce", "", frames=FRAMES, caption_key="usual")


def parsed(caption: str) -> tuple[int, int | None, str]:
    """Return digit, count and tempo of a first or second caption, by reading its words."""
    pattern = r"(?:an?|the digit) (\w+) (?:bounces|hits the floor)(?: (\w+ times|not once|once|twice))?(.*)"
    match = re.fullmatch(pattern, caption)
    assert match, caption
    name, times, rest = match.groups()
    tempo = {"": "", "fast": "fast", "slowly": "slow", "at a fast pace": "fast", "at a slow pace": "slow"}
    return NAMES.index(name), HOW_OFTEN[times] if times else None, tempo[rest.strip(", ")]


def test_every_caption_states_the_digit_the_impacts_and_the_time_between_them(data: Bounce) -> None:
    """A count is that of the impacts in the clip. It is not stated if half a frame could change it."""
    seen: Counter[str] = Counter()
    for index in range(0, len(data), 3):
        times, period, captions = data.impacts(index), data.period[index], data.captions(index)
        around = np.array([*times, times[0] - period, times[-1] + period])
        near = (np.abs(around + 0.5) < 0.5) | (np.abs(around - FRAMES + 0.5) < 0.5)
        for caption in captions[:2]:
            digit, count, tempo = parsed(caption)
            assert digit == data.sample(index).label
            assert count is None or count == len(times)
            assert {"fast": period < 6, "slow": period >= 7.2, "": True}[tempo]
            assert not tempo or len(times) >= 2
            seen.update([tempo, str(count)])
        if not near.any():
            assert parsed(captions[0])[1] == len(times)
        assert captions[2:] in ((), (f"a bouncing {NAMES[data.sample(index).label]}",))
    assert {"fast", "slow", "", "1", "2", "None"} <= seen.keys()


@pytest.mark.parametrize(
    ("first", "period", "frames", "expected"),
    [
        (2.0, 5.0, 12, Bounces(7, 2, "fast")),
        (2.0, 7.9, 12, Bounces(7, 2, "slow")),
        (2.0, 6.5, 12, Bounces(7, 2, "")),
        # The impact at 11.2 is 0.3 frames from the end of the last frame.
        (1.2, 5.0, 12, Bounces(7, None, "fast")),
        # The impact at -0.9 is 0.4 frames before the clip, and the one at 7.1 is the only one within.
        (7.1, 8.0, 12, Bounces(7, None, "")),
        # The impact at 3.9 is 0.4 frames after the clip.
        (3.9, 8.0, 4, Bounces(7, None, "")),
        (4.5, 8.0, 4, Bounces(7, 0, "")),
    ],
)
def test_bounces_equals_hand_counted_impacts(
    first: float, period: float, frames: int, expected: Bounces
) -> None:
    assert bounces(7, first, period, frames) == expected


def test_captions_are_worded_in_three_ways() -> None:
    assert described(Bounces(7, 2, "fast")) == (
        "a seven bounces twice, fast",
        "the digit seven hits the floor twice at a fast pace",
        "a bouncing seven",
    )
    assert described(Bounces(8, None, "slow"))[0] == "an eight bounces slowly"
    assert described(Bounces(0, 3, ""))[:2] == (
        "a zero bounces three times",
        "the digit zero hits the floor three times",
    )


def test_numbers_of_captions_vary(data: Bounce) -> None:
    numbers = Counter(len(data.captions(index)) for index in range(len(data)))
    assert set(numbers) == {1, 2, 3} and min(numbers.values()) > 1000


def test_captions_are_generated_and_pinned_only_if_they_are_read(data: Bounce) -> None:
    """A run on labels has the data, the fingerprint and the id that it had before captions existed."""
    plain = opened("bounce", "", frames=FRAMES)
    assert Capabilities(plain).captions is None
    assert (plain.fingerprint, data.fingerprint) == ("7d05298a59442d43", "718cb04e8a7be00a")
    np.testing.assert_array_equal(plain.sample(5).x, data.sample(5).x)


def test_part_of_a_clip_keeps_captions_and_facts(data: Bounce) -> None:
    parts = {"video": DataPart(weight=1.0), "audio": DataPart(weight=0.0)}
    spec = DataSpec.model_validate(
        {"name": "bounce", "frames": FRAMES, "caption_key": "usual", "parts": parts}
    )
    alone = Capabilities(open_dataset(spec))
    assert alone.captions is not None and alone.truth is not None
    assert alone.captions(9) == data.captions(9) and alone.truth(9) == data.truth(9)
    assert alone.states == ("object", "count", "tempo") and alone.modality == "video"


def test_caption_key_other_than_the_generated_captions_is_rejected() -> None:
    with pytest.raises(UserError, match=r"data\.caption_key = title: the captions of bounce are generated"):
        opened("bounce", "", frames=4, caption_key="title")
