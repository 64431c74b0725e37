"""The order of the last runs of a study: the slots end together, and every run starts once."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from harness.errors import UserError
from sweeps.plan import run_order
from sweeps.plan.plan import PlannedRun, make_plan
from sweeps.plan.run_order import balanced, in_balanced_order
from sweeps.plan.study import load_study

DIGITS = [69, 80, 89] * 3
"""Seconds of flow, REPA and Self-Flow on the digits of `make race`, with three seeds each."""


def end_of(costs: list[int], order: list[int], slots: int) -> int:
    """Return when slots that take the jobs in this order have all ended, one second at a time."""
    queue, left, clock = [costs[job] for job in order], [0] * slots, 0
    while queue or any(left):
        for slot in range(slots):
            if left[slot] == 0 and queue:
                left[slot] = queue.pop(0)
        left = [max(0, seconds - 1) for seconds in left]
        clock += 1
    return clock


def earliest_end(costs: list[int], slots: int) -> int:
    """Return the earliest end over all ways to give the jobs to slots."""
    ways = product(range(slots), repeat=len(costs))
    return min(
        max(sum(c for c, own in zip(costs, way, strict=True) if own == slot) for slot in range(slots))
        for way in ways
    )


def test_digits_race_ends_as_early_as_any_assignment_to_two_slots() -> None:
    order = balanced(DIGITS, 2, fixed=2)
    assert sorted(order) == list(range(9)) and order[:2] == [0, 1]
    assert end_of(DIGITS, order, 2) == earliest_end(DIGITS, 2) == 367
    assert end_of(DIGITS, list(range(9)), 2) == 387


@pytest.mark.parametrize(
    ("costs", "slots"), [([7, 5, 5, 3, 3, 9], 2), ([3, 3, 3, 3, 12], 2), ([4, 9, 2, 8, 5, 1, 7], 3)]
)
def test_order_never_ends_later_than_the_plan(costs: list[int], slots: int) -> None:
    order = balanced(costs, slots)
    assert sorted(order) == list(range(len(costs)))
    assert earliest_end(costs, slots) <= end_of(costs, order, slots)
    assert end_of(costs, order, slots) <= end_of(costs, list(range(len(costs))), slots)


def test_order_is_that_of_the_plan_if_an_exchange_gains_nothing() -> None:
    assert balanced([5] * 7, 2) == list(range(7)) and balanced([2, 1], 2) == [0, 1]


@pytest.fixture(scope="module")
def planned() -> list[PlannedRun]:
    return make_plan(load_study("digits")).runs


def test_each_run_of_a_study_starts_once_and_the_first_before_costs_are_counted(
    planned: list[PlannedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []

    def flops_left(state: run_order.RunState) -> int:
        counted.append(state.run.id)
        return {"flow": 69, "repa": 80, "self_flow": 89}[state.run.spec.method.name]

    monkeypatch.setattr(run_order, "flops_left", flops_left)
    order = in_balanced_order(planned, tmp_path, slots=2)
    first = [next(order), next(order)]
    assert first == planned[:2] and not counted
    ids = [run.id for run in [*first, *order]]
    assert sorted(ids) == sorted(run.id for run in planned) and ids != [run.id for run in planned]


def test_study_keeps_the_order_of_its_plan_if_costs_cannot_be_counted(
    planned: list[PlannedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: run_order.RunState) -> int:
        raise UserError("no data")

    monkeypatch.setattr(run_order, "flops_left", fails)
    assert list(in_balanced_order(planned, tmp_path, slots=2)) == planned
    assert list(in_balanced_order(planned, tmp_path, slots=1)) == planned


def test_order_of_the_plan_is_kept_where_arms_would_run_one_after_the_other(
    planned: list[PlannedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With costs 1, 1.6 and 0.5 and two seeds the shortest order starts the third arm last."""
    costs = {"flow": 10, "repa": 16, "self_flow": 5}
    monkeypatch.setattr(run_order, "flops_left", lambda state: costs[state.run.spec.method.name])
    two_seeds = planned[:6]
    shortest = balanced([costs[run.spec.method.name] for run in two_seeds], 2, fixed=2)
    assert [two_seeds[place].spec.method.name for place in shortest[4:]] == ["self_flow"] * 2
    assert list(in_balanced_order(two_seeds, tmp_path, slots=2)) == two_seeds
