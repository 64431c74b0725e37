"""Captions of bouncing digits, and the facts about a clip that they state."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.data.generated.prompts import NUMBERS

STATES = ("object", "count", "tempo")
"""The attributes that the captions state."""
NEAR = 0.5
"""A caption does not state the count if an impact is within this many frames of an end of the clip."""
TEMPI = {"fast": (0.0, 6.0), "slow": (7.2, np.inf)}
"""Tempo -> the frames from one impact to the next. Clips between the two have no tempo in their captions."""
TIMES = ("not once", "once", "twice")
"""The number of impacts in words; from three on they are `three times`, and so on."""


@dataclass(frozen=True)
class Bounces:
    """The known facts about a clip of a bouncing digit."""

    digit: int
    count: int | None
    """Number of impacts; None if an impact is so near an end of the clip that it may count or not."""
    tempo: str
    """A key of `TEMPI`; empty for another tempo, and for fewer than two impacts in the clip."""


def bounces(digit: int, first: float, period: float, frames: int) -> Bounces:
    """Return the facts about a clip of `frames` frames, frame k at time k, from -1/2 to `frames` - 1/2.

    `first` is the time of an impact in frames, and `period` the time to the next.
    """
    begin, end = -0.5, frames - 0.5
    times = first + period * np.arange(np.ceil((begin - 1 - first) / period), (end + 1 - first) / period)
    open_ = any((np.abs(times - side) < NEAR).any() for side in (begin, end))
    inside = int(((times >= begin + NEAR) & (times < end - NEAR)).sum())
    tempo = next((name for name, (low, high) in TEMPI.items() if low <= period < high), "")
    return Bounces(digit, None if open_ else inside, tempo if inside > 1 else "")


def described(known: Bounces) -> tuple[str, str, str]:
    """Return three captions of a clip: every fact, the same in other words, and the digit alone.

    >>> described(Bounces(7, 2, "fast"))[0]
    'a seven bounces twice, fast'
    """
    name, count, tempo = NUMBERS[known.digit], known.count, known.tempo
    times = "" if count is None else f" {_times(count)}"
    manner = {"fast": " fast", "slow": " slowly"}.get(tempo, "")
    comma = "," if times and manner else ""
    pace = f" at a {tempo} pace" if tempo else ""
    article = "an" if name == "eight" else "a"
    return (
        f"{article} {name} bounces{times}{comma}{manner}",
        f"the digit {name} hits the floor{times}{pace}",
        f"a bouncing {name}",
    )


def _times(count: int) -> str:
    """Return a number of impacts in words.

    >>> _times(2), _times(3), _times(12)
    ('twice', 'three times', '12 times')
    """
    if count < len(TIMES):
        return TIMES[count]
    return f"{NUMBERS[count] if count < len(NUMBERS) else count} times"
