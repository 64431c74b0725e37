"""The share of the gradient from alignment, by arm: whether a flat alignment loss is steady or dead.

It is read from the `gradients` events of `train.log_gradients_every`. Shares and cosines are those of the
blocks that alignment reaches. Later blocks get no gradient from it, and often most of the flow loss's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from harness.records.record import TRAINING_PHASES, Record
from reports.race.race import Race
from reports.race.run import RaceRun
from reports.stats.means import Mean, geometric_mean_of, mean_of

DEAD = 0.01
"""Share of the gradient below which alignment no longer steers the blocks that it reaches."""
FLAT = 0.02
"""Relative change of the alignment loss, from the third to the last quarter, below which it is flat."""
FEWEST = 4
"""Readings of a run that have a third and a last quarter."""
COLLAPSED = 0.99
"""Mean cosine of a target's tokens above which the target has collapsed to one direction."""
TARGETS = ("teacher ", "encoder ")
RATIOS = ("share", "network_share", "flow", "auxiliary")
"""Positive quantities, whose means are geometric unless one is 0."""
State = Literal["none", "off", "steers", "dead", "undecided"]
Trend = Literal["flat", "changes", "undecided", "single", "unknown"]
Series = tuple[np.ndarray, np.ndarray]
"""Steps and values."""


@dataclass(frozen=True)
class GradientArm:
    """The readings of an arm; means are over runs to their last step, of each run's last quarter of
    readings."""

    arm: str
    state: State
    """none: no auxiliary term; off: it has ended by its schedule before the last reading; dead: the share is
    below 1 %."""
    first: int
    """The first step of the last quarter."""
    last: int
    means: Mapping[str, Mean]
    """By name: share, network_share, flow and auxiliary (norms), which are geometric; cosine, network_cosine,
    loss, change."""
    features: Mapping[str, tuple[Mean, Mean]]
    """Norm and sameness by place, for example `student 4`."""
    blocks: int
    """Number of blocks that alignment reaches."""

    @property
    def trend(self) -> Trend:
        """The trend of the alignment loss from the third to the last quarter, by the interval of its change.

        single: one seed, which has no interval; unknown: no run has enough readings.
        """
        change = self.means.get("change")
        if change is None:
            return "unknown"
        if change.low is None or change.high is None:
            return "single"
        if change.low > -FLAT and change.high < FLAT:
            return "flat"
        return "changes" if change.low >= FLAT or change.high <= -FLAT else "undecided"

    @property
    def collapsed(self) -> list[str]:
        """The targets whose tokens have nearly one direction."""
        return [
            place
            for place, (_, sameness) in self.features.items()
            if place.startswith(TARGETS) and sameness.mean > COLLAPSED
        ]


@dataclass(frozen=True)
class Gradients:
    """The readings of a race."""

    arms: tuple[GradientArm, ...]
    """The arms with a run to its last step."""
    series: Mapping[str, Mapping[str, Mapping[int, Series]]]
    """By quantity, arm and seed: share, cosine, flow, auxiliary, features (norm of the last block)."""
    seconds: float
    """Time of all readings over the time of training."""
    flops: float


def gradients_of(race: Race) -> Gradients | None:
    """Return the readings of a race; None if no run has any."""
    runs = [run for run in race.runs if run.record.of("gradients")]
    if not runs:
        return None
    labels = [arm.label for arm in race.arms if any(run.arm == arm.label for run in runs)]
    series = {
        name: {
            label: found
            for label in labels
            if (found := {run.seed: own for run in runs if run.arm == label and (own := _series(run, name))})
        }
        for name in ("share", "cosine", "flow", "auxiliary", "features")
    }
    # The last quarter of a run that ended early is another part of training.
    full = [run for run in runs if run.record.status == "done" and run.record.early_end is None]
    by_arm = {label: [run for run in full if run.arm == label] for label in labels}
    arms = tuple(_arm(label, own) for label, own in by_arm.items() if own)
    return Gradients(arms, series, *_cost([run.record for run in runs]))


def value_of(event: Mapping[str, Any], name: str) -> float | None:
    """Return a quantity of a reading; None if it is undefined, or if the method has no auxiliary term."""
    features = event.get("features", {})
    if name == "features":
        blocks = [place for place in features if place.startswith("student ")]
        last = max(blocks, key=lambda place: int(place.split()[1]), default="")
        return features.get(last)
    if name in ("flow", "auxiliary"):
        return event.get("norms", {}).get(name)
    if name in ("share", "cosine"):
        return event.get("reached", {}).get(name)
    if name == "loss":
        return event.get("losses", {}).get("align")
    return event.get(name.removeprefix("network_"))


def _series(run: RaceRun, name: str) -> Series | None:
    known = [(e["step"], v) for e in run.record.of("gradients") if (v := value_of(e, name)) is not None]
    return (np.array([s for s, _ in known]), np.array([v for _, v in known])) if known else None


def _arm(label: str, runs: Sequence[RaceRun]) -> GradientArm:
    every = [run.record.of("gradients") for run in runs]
    quarters = [_last_quarter(events) for events in every]
    names = (*RATIOS, "cosine", "network_cosine", "loss")
    means = {
        name: geometric_mean_of(known) if name in RATIOS and min(known) > 0 else mean_of(known)
        for name in names
        if (known := [v for own in quarters if (v := _mean(own, name)) is not None])
    }
    for name in ("cosine", "network_cosine"):
        if name in means:
            means[name] = _bounded(means[name])
    changes = [change for events in every if (change := _change(events)) is not None]
    if changes:
        means["change"] = mean_of(changes)
    return GradientArm(
        label,
        _state(every, quarters, means.get("share")),
        min(own[0]["step"] for own in quarters),
        max(own[-1]["step"] for own in quarters),
        means,
        _features(quarters),
        max(
            (int(e["reached"].get("blocks") or 0) for own in quarters for e in own if "reached" in e),
            default=0,
        ),
    )


def _bounded(cosine: Mean) -> Mean:
    """Return the mean of cosines with an interval that ends at -1 and 1."""
    low, high = (None if end is None else min(1.0, max(-1.0, end)) for end in (cosine.low, cosine.high))
    return cosine._replace(low=low, high=high)


def _state(
    every: Sequence[Sequence[Mapping[str, Any]]],
    quarters: Sequence[Sequence[Mapping[str, Any]]],
    share: Mean | None,
) -> State:
    if not any("auxiliary" in event.get("norms", {}) for events in every for event in events):
        return "none"
    if share is None:
        return "off"
    if share.low is not None and share.high is not None:
        low, high = share.low, share.high
    else:
        # One seed has no interval, so all its readings must agree.
        each = (own for own in quarters if not _has_ended(own))
        known = [v for own in each for event in own if (v := value_of(event, "share")) is not None]
        low, high = min(known), max(known)
    return "dead" if high < DEAD else "steers" if low >= DEAD else "undecided"


def _features(quarters: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, tuple[Mean, Mean]]:
    places = dict.fromkeys(place for own in quarters for event in own for place in event.get("features", {}))
    found = {}
    for place in places:
        both = []
        for table in ("features", "sameness"):
            each = [[v for e in own if (v := e.get(table, {}).get(place)) is not None] for own in quarters]
            both.append([float(np.mean(values)) for values in each if values])
        if all(both):
            found[place] = (mean_of(both[0]), mean_of(both[1]))
    return found


def _last_quarter(events: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    return events[-max(1, len(events) // 4) :]


def _has_ended(events: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the last of these readings has no auxiliary gradient."""
    return "auxiliary" not in events[-1].get("norms", {})


def _mean(events: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Return the mean over readings; None for a quantity of alignment that ended before the last of them."""
    if name != "flow" and _has_ended(events):
        return None
    known = [value for event in events if (value := value_of(event, name)) is not None]
    return float(np.mean(known)) if known else None


def _change(events: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the relative change of the alignment loss from the third to the last quarter of readings."""
    if len(events) < FEWEST:
        return None
    size = len(events) // 4
    before, after = (_mean(part, "loss") for part in (events[-2 * size : -size], events[-size:]))
    return None if before is None or after is None or not before else (after - before) / abs(before)


def _cost(records: Sequence[Record]) -> tuple[float, float]:
    """Return seconds and FLOPs of the readings as shares of training."""
    last = [event for record in records if (event := record.last_trained)]
    read = sum(event["seconds"].get("gradients", 0.0) for event in last)
    trained = sum(event["seconds"].get(phase, 0.0) for event in last for phase in TRAINING_PHASES)
    flops = sum(event.get("reading_flops") or 0 for record in records for event in record.of("gradients"))
    counted = sum(event.get("flops", 0) for event in last)
    return read / trained if trained else 0.0, flops / counted if counted else 0.0
