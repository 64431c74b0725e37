"""Success of policies by arm, from recorded rollouts: one arm, or two on the same starts.

An arm is one network, or several that differ in their training seed. The networks of two arms are paired by
training seed, and their episodes by start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from harness.errors import UserError
from harness.records.record import Record
from harness.records.rollouts import CONDITIONS, Rollout, read_rollout
from metrics.intervals import share
from reports.stats.success import Levels, Pairs, difference_levels, paired, success_levels

SUCCESS = "success"
COMPARED = ("task", "version", "horizon", "first", "noise")
"""Conditions that rollouts must share to be compared."""
Arm = Mapping[int, Rollout]
"""Rollouts by training seed."""


@dataclass(frozen=True)
class Comparison:
    """The success of two arms, or success in one stage, on the starts that all their networks met."""

    name: str
    """`success`, or the name of a stage."""
    first: Levels
    second: Levels
    difference: Levels
    """The first minus the second, over training seeds and starts."""
    pairs: Mapping[int, Pairs]
    """The comparison of two networks, by training seed."""

    @property
    def direction(self) -> str:
        """`more` if the first arm succeeds more often, `less` if less often, else `unresolved`.

        Of several training seeds the interval over both levels decides, of a single one the exact test.
        """
        low, high = self.difference.low, self.difference.high
        if low is None or high is None:
            (pair,) = self.pairs.values()
            resolved = pair.p <= 0.05
        else:
            resolved = low > 0 or high < 0
        if not resolved:
            return "unresolved"
        return "more" if self.difference.mean > 0 else "less"


def read_arm(folders: Sequence[Path], task: str | None = None) -> Arm:
    """Return the rollouts of an arm by training seed; folders outside of runs are numbered.

    A folder is a run or the folder of one rollout. Raises `UserError` for several rollouts of one seed.
    """
    arm: dict[int, Rollout] = {}
    for number, folder in enumerate(folders):
        place = _place_of(folder, task)
        seed = _training_seed(place, number)
        if seed in arm:
            raise UserError(f"{folder}: the arm has a rollout of training seed {seed} already")
        arm[seed] = read_rollout(place)
        if not arm[seed].episodes:
            raise UserError(f"{place} has no episode yet; wait for flowrace rollout")
    return arm


def _place_of(folder: Path, task: str | None) -> Path:
    """Return the folder with the record of a rollout, in a run or given itself."""
    if (folder / CONDITIONS).is_file():
        return folder
    found = sorted(file.parent for file in folder.glob(f"rollouts/*/{CONDITIONS}"))
    if task is not None:
        found = [place for place in found if read_rollout(place).conditions.task == task]
    if len(found) == 1:
        return found[0]
    of = f" of task '{task}'" if task else ""
    if not found:
        raise UserError(f"{folder} has no rollout{of}; run: flowrace rollout {folder} --task TASK")
    raise UserError(
        f"{folder} has {len(found)} rollouts{of}; give one of them, for example {found[0]}, or --task TASK"
    )


def _training_seed(place: Path, number: int) -> int:
    """Return the training seed of the run that a rollout is in; without a run, a number."""
    run = place.resolve().parent.parent
    if not (run / "spec.toml").is_file():
        return number
    return int(Record(run).spec.get("seed", number))


def compare(first: Arm, second: Arm) -> list[Comparison]:
    """Return the comparison of success, and of each stage if there are several.

    Raises `UserError` if the arms have no training seed or no start in common, or other conditions. Several
    training seeds need two starts.
    """
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        raise UserError(
            f"the arms share no training seed: {_listed(first)} against {_listed(second)}; networks are "
            "paired by training seed"
        )
    rollouts = [arm[seed] for arm in (first, second) for seed in seeds]
    _check_conditions(rollouts)
    starts = set.intersection(*({episode.seed for episode in one.episodes} for one in rollouts))
    if not starts:
        raise UserError("the rollouts share no start; run flowrace rollout with a larger -n")
    if len(seeds) > 1 and len(starts) < 2:
        raise UserError(
            f"the rollouts of {len(seeds)} training seeds share 1 start, expected at least 2; run flowrace "
            "rollout with a larger -n"
        )
    arms = [[_on(arm[seed], starts) for seed in seeds] for arm in (first, second)]
    stages = rollouts[0].conditions.stages
    names = (SUCCESS, *(stages if len(stages) > 1 else ()))
    return [_compared(name, seeds, *arms) for name in names]


def _on(rollout: Rollout, starts: set[int]) -> Rollout:
    return replace(rollout, episodes=tuple(one for one in rollout.episodes if one.seed in starts))


def _compared(
    name: str, seeds: Sequence[int], first: Sequence[Rollout], second: Sequence[Rollout]
) -> Comparison:
    a, b = (np.array([_holds(one, name) for one in arm]) for arm in (first, second))
    pairs = {seed: paired(a[row], b[row]) for row, seed in enumerate(seeds)}
    return Comparison(name, level_of(a), level_of(b), difference_levels(a, b), pairs)


def level_of(successes: np.ndarray) -> Levels:
    """Return success over both levels; for a single network, with Wilson's interval over its starts."""
    found = success_levels(successes)
    if len(successes) > 1:
        return found
    wilson = share(successes[0], successes.shape[1])
    return found._replace(low=wilson.low, high=wilson.high)


def _holds(rollout: Rollout, name: str) -> list[bool]:
    if name == SUCCESS:
        return [episode.success for episode in rollout.episodes]
    return [episode.stages[name] is not None for episode in rollout.episodes]


def _check_conditions(rollouts: Sequence[Rollout]) -> None:
    for field in COMPARED:
        values = {getattr(one.conditions, field) for one in rollouts}
        if len(values) > 1:
            listed = ", ".join(map(str, sorted(values)))
            raise UserError(f"the rollouts differ in {field}: {listed}; roll out all arms alike")


def _listed(arm: Arm) -> str:
    return ", ".join(map(str, sorted(arm)))
