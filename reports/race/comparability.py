"""The axes on which runs can be compared: one protocol, a falling metric, one kind of machine, interleaved
arms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations

from harness.records.evaluations import SHORTFALL
from harness.records.record import Record
from reports.race.log_records import LogRecord
from reports.race.run import RaceRun
from reports.stats.curves import AXES, CLOCK_AXES, Costs, rises


def protocol_hashes(runs: Sequence[RaceRun]) -> list[str]:
    """Return the hashes of the evaluation protocols of the runs that count.

    Runs can be compared only if there is a single protocol.
    """
    return sorted({protocol for run in runs if run.counts for protocol in run.protocols})


def values_differ(runs: Sequence[RaceRun]) -> str:
    """Return why values of these runs, and times read from them, cannot be compared; empty if they can."""
    if len(protocol_hashes(runs)) > 1:
        return "the runs were evaluated under different protocols, so their values cannot be compared"
    counted = [run for run in runs if run.counts]
    if rises([run.curve for run in counted]):
        metric = counted[0].metric
        shares = all(0 <= value <= 1 for run in counted for value in run.curve.measured)
        how = f" (of a share, its shortfall: --metric {SHORTFALL}{metric})" if shares else ""
        return f"{metric} rises during training in every run, but a race needs a metric that falls{how}"
    return ""


def machines_of(record: Record) -> list[str]:
    """Return the kinds of machine that a run was started on, as texts."""
    return machine_kinds(record.environment)


def machine_kinds(starts: Iterable[Mapping]) -> list[str]:
    """Return the kinds of machine in these environments, as texts."""
    # An import trains nothing.
    return sorted({_machine(start) for start in starts if "imported" not in start})


def comparable_axes(runs: Sequence[RaceRun]) -> tuple[tuple[str, ...], list[str]]:
    """Return the axes on which these runs can be compared, and notes on why others are left out.

    Without the budget in seconds of runs that ended early, seconds are compared only if every run that counts
    has reached its target, so that no time is cut at a horizon.
    """
    devices = {start.get("devices", 1) for run in runs for start in run.record.environment}
    logged = any(isinstance(run.record, LogRecord) for run in runs)
    axes = AXES if devices - {1} or logged else AXES[:-1]
    axes = tuple(axis for axis in axes if all(axis in run.costs.totals for run in runs))
    machines = sorted({text for run in runs if run.counts for text in machines_of(run.record)})
    sequential = _sequential_arms([run for run in runs if run.counts])
    early = unknown_seconds(run.costs for run in runs)
    if early and not _all_reached(runs):
        note = f"Seconds are left out: {early}."
    elif len(machines) > 1:
        note = f"Seconds are left out: the runs used different hardware ({'; '.join(machines)})."
    elif sequential:
        note = (
            f"Seconds are left out: arms were run one after the other instead of interleaved ({sequential})."
        )
    elif early:
        return axes, [f"Seconds have no horizon: {early}, but every run reached the target."]
    else:
        return axes, []
    return tuple(axis for axis in axes if axis not in CLOCK_AXES), [note]


def unknown_seconds(costs: Iterable[Costs]) -> str:
    """Return why runs that ended early have no horizon in seconds, in words; empty if no run ended early."""
    early = sum(one.given is not None for one in costs)
    who = (
        "1 run ended early, so the seconds to its"
        if early == 1
        else f"{early} runs ended early, so the seconds to their"
    )
    return f"{who} last step are unknown" if early else ""


def _all_reached(runs: Iterable[RaceRun]) -> bool:
    """Return whether every run that counts has reached its target."""
    return all(run.crosses and run.crossing.censored != "right" for run in runs if run.counts)


def one_after_another(begun: Mapping[str, Sequence[float | None]]) -> list[tuple[str, str]]:
    """Return pairs of arms in which all runs of the first began before any run of the second.

    `begun` has the start times of each arm's runs. Arms with fewer than two runs, or with unknown times, are
    ignored.
    """
    known = {arm: [time for time in times if time is not None] for arm, times in begun.items()}
    complete = {arm: times for arm, times in known.items() if len(times) == len(begun[arm]) > 1}
    return [
        (first, then)
        for first, then in permutations(complete, 2)
        if max(complete[first]) < min(complete[then])
    ]


def _sequential_arms(runs: Sequence[RaceRun]) -> str:
    """Return which arms were run one after the other, as text; empty if all were interleaved."""
    begun: dict[str, list[float | None]] = {}
    for run in runs:
        start = next(iter(run.record.environment), {})
        begun.setdefault(run.arm, []).append(start.get("started"))
    pairs = [f"{first} before {then}" for first, then in one_after_another(begun)]
    return "; ".join(pairs[:1] + [f"{len(pairs) - 1} more such pairs"] * (len(pairs) > 1))


def _machine(start: Mapping) -> str:
    device, threads = start.get("device", "unknown device"), start.get("threads")
    counted = device == "cpu" and threads is not None
    return f"{device} {start.get('device_name', '')}".strip() + (f", threads: {threads}" if counted else "")
