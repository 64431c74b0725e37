"""The order of the last runs of a study on a few slots, in which the slots end together.

Runs start in the order of the plan, which interleaves the arms. If their costs differ, one slot may then work
on its last run for long while the others are idle. So a few of the last runs are exchanged.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Sequence
from itertools import combinations, permutations
from pathlib import Path

from harness.errors import UserError
from sweeps.plan.plan import PlannedRun
from sweeps.plan.run_cost import run_cost
from sweeps.plan.run_state import RunState, read_state

LAST_PER_SLOT, LAST = 5, 40
"""Number of runs at the end of a study whose order may change: for each slot, and at most."""
GAIN = 0.01
"""Smallest share of the time of these runs for which their order is changed."""


def in_balanced_order(runs: Sequence[PlannedRun], directory: Path, slots: int) -> Iterator[PlannedRun]:
    """Yield the runs of a study in the order in which they are to start.

    The first one of each slot is that of the plan, and is yielded before any cost is counted. The order stays
    that of the plan if costs cannot be counted, or if arms would be run one after the other.
    """
    states = [read_state(run, directory) for run in runs]
    due = [state for state in states if state.status not in ("done", "running")]
    last = due[-min(LAST_PER_SLOT * slots, LAST) :]
    early, movable = last[:slots], last[slots:]
    moved = {state.run.id for state in movable}
    yield from (state.run for state in states if state.run.id not in moved)
    if slots == 1 or len(movable) < 2:
        yield from (state.run for state in movable)
        return
    try:
        costs = [flops_left(state) for state in last]
    except UserError:
        costs = [0] * len(last)
    order = [last[place].run for place in balanced(costs, slots, fixed=len(early))[len(early) :]]
    before = [state.run for state in states if state.run.id not in moved]
    yield from order if are_interleaved([*before, *order]) else (state.run for state in movable)


def are_interleaved(runs: Sequence[PlannedRun]) -> bool:
    """Return whether no arm has all of its runs before all runs of another, which forbids to compare seconds.

    Arms with one run are ignored.
    """
    places: dict[str, list[int]] = {}
    for place, run in enumerate(runs):
        arm = {name: value for name, value in run.values.items() if name != "seed"}
        places.setdefault(json.dumps(arm, sort_keys=True, default=str), []).append(place)
    several = [found for found in places.values() if len(found) > 1]
    return not any(first[-1] < then[0] for first, then in permutations(several, 2))


def flops_left(state: RunState) -> int:
    """Return the counted FLOPs of the training steps that remain."""
    if state.is_trained:
        return 0
    cost = run_cost(state.run.spec)
    return cost.total - cost.until(min(state.step, cost.steps))


def balanced(costs: Sequence[float], slots: int, fixed: int = 0) -> list[int]:
    """Return an order of jobs with these costs, with the first `fixed` ones in place, that ends early.

    Each slot takes the next job when it is free. As long as an exchange of two jobs makes the last one end
    earlier, the best such exchange is made. The given order is returned if that gains too little.
    """
    order = list(range(len(costs)))
    given = best = _end(costs, order, slots)
    while exchange := _best_exchange(costs, order, slots, fixed, best):
        best, first, second = exchange
        order[first], order[second] = order[second], order[first]
    return order if best < given * (1 - GAIN) else list(range(len(costs)))


def _best_exchange(
    costs: Sequence[float], order: list[int], slots: int, fixed: int, best: float
) -> tuple[float, int, int] | None:
    """Return the end after the best exchange, and its two places; None if none ends before `best`."""
    found = None
    for first, second in combinations(range(fixed, len(order)), 2):
        if costs[order[first]] == costs[order[second]]:
            continue
        tried = order.copy()
        tried[first], tried[second] = tried[second], tried[first]
        end = _end(costs, tried, slots)
        if end < best:
            best, found = end, (end, first, second)
    return found


def _end(costs: Sequence[float], order: Sequence[int], slots: int) -> float:
    """Return when the last job ends."""
    ends = [0.0] * slots
    for job in order:
        heapq.heapreplace(ends, ends[0] + costs[job])
    return max(ends)
