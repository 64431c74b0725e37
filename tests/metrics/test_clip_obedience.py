"""Obedience of clips: the share by hand, and a reader that is a pure function of clips and facts."""

from __future__ import annotations

import numpy as np
import pytest

from metrics import MetricError
from metrics.domain import clip_obedience as module
from metrics.domain.clip_obedience import KINDS, UNKNOWN, Facts, clip_obedience, clip_reader
from metrics.intervals import share

STATED = Facts(np.array([7, 7, 3, 3]), np.array([2, UNKNOWN, 1, 2]), np.array([0, 1, UNKNOWN, UNKNOWN]))
SEEN = Facts(np.array([7, 1, 3, 3]), np.array([2, 9, 1, 1]), np.array([0, 0, 1, 1]))
HEARD = Facts(np.array([7, 7, 3, 1]), np.array([1, 2, 1, 2]), np.array([0, 1, 0, 0]))


@pytest.mark.parametrize(
    ("kind", "seen", "heard", "both", "n"),
    [("object", 3, 3, 2, 4), ("count", 2, 2, 1, 3), ("tempo", 1, 2, 1, 2)],
)
def test_clip_obeys_if_every_part_shows_what_the_caption_states(
    kind: str, seen: int, heard: int, both: int, n: int
) -> None:
    for shown, right in (([SEEN], seen), ([HEARD], heard), ([SEEN, HEARD], both)):
        assert clip_obedience(kind, shown, STATED) == share(np.arange(n) < right, n)


def test_obedience_without_a_stated_attribute_is_undefined() -> None:
    nothing = Facts(*(np.full(4, UNKNOWN) for _ in KINDS))
    with pytest.raises(MetricError, match="no caption states the attribute 'tempo'"):
        clip_obedience("tempo", [SEEN], nothing)
    with pytest.raises(MetricError, match="got 4 clips and 1 captions"):
        clip_obedience("count", [SEEN], Facts(*(np.zeros(1, int) for _ in KINDS)))
    with pytest.raises(MetricError, match="got no clips and 4 captions"):
        clip_obedience("count", [], STATED)


def flashes(n: int, frames: int = 6) -> tuple[np.ndarray, Facts]:
    """Return clips of a bright or a dim square that flashes once or twice, early or late, and their facts."""
    random = np.random.default_rng(0)
    kinds, counts, tempi = (random.integers(0, 2, n) for _ in KINDS)
    clips = np.full((n, frames, 1, 8, 8), 20, np.uint8)
    for clip, kind, count, tempo in zip(clips, kinds, counts, tempi, strict=True):
        for number in range(count + 1):
            clip[(1, 3)[number] + tempo, :, 2:6, 2:6] = (90, 255)[kind]
    return clips, Facts(kinds, counts + 1, np.where(counts == 1, tempi, UNKNOWN))


def test_reader_learns_facts_of_clips_and_finds_no_event_in_still_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "STEPS", 40)
    clips, facts = flashes(400)
    reader = clip_reader(clips, facts)
    shown = reader.read(clips)
    assert reader.accuracy > 0.9
    assert all(clip_obedience(kind, [shown], facts).mean > 0.9 for kind in KINDS)
    still = np.repeat(clips[:100, :1], clips.shape[1], axis=1)
    assert (reader.read(still).count == 0).mean() > 0.9


def test_reader_has_the_same_weights_for_the_same_clips_and_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 2)
    clips, facts = flashes(120)
    other = Facts(facts.object, facts.count, 1 - facts.object)
    made = [clip_reader(clips, given).sha256 for given in (facts, facts, other)]
    assert made[0] == made[1] != made[2]


def test_clips_that_cannot_be_read_are_refused() -> None:
    clips, facts = flashes(120)
    with pytest.raises(MetricError, match="needs at least 100 clips, and facts for each, but got 99"):
        clip_reader(clips[:99], facts)
    with pytest.raises(MetricError, match=r"expected clips uint8 \(N, T, C, H, W\), but got float64"):
        clip_reader(clips.astype(float), facts)
