"""The plan of a sweep with its costs, and its results, as tables and as JSON data."""

from __future__ import annotations

import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from harness.costs.disk import disk_bytes
from harness.files.progress import format_duration
from harness.files.terminal import Console
from harness.records.evaluations import without_parts
from harness.records.measured import last_evaluation
from harness.records.record import TRAINING_PHASES, Record, failure_reason
from sweeps.plan.budget import count_flops
from sweeps.plan.missing_weights import find_missing, missing_lines
from sweeps.plan.plan import ExcludedRun, PlannedRun
from sweeps.plan.run_cost import run_cost
from sweeps.plan.run_order import flops_left
from sweeps.plan.run_state import TO_EVALUATE, TO_EXTEND, RunState, read_state
from sweeps.plan.study import Study, format_value, run_label


def describe_plan(
    study: Study, runs: Sequence[PlannedRun], directory: Path, excluded: Sequence[ExcludedRun] = ()
) -> dict[str, Any]:
    """Return the plan as JSON data: every run with its status and counted FLOPs, and the disk space.

    `left` is the cost of the remaining training; `left_out` has a line for each excluded arm, with the
    reason.
    """
    flops = count_flops(runs)
    states = [read_state(run, directory) for run in runs]
    left = sum(map(flops_left, states))
    rate = seconds_per_flop(runs, directory, flops)
    return {
        "study": study.name,
        "directory": str(directory),
        "runs": [{**_described(state, directory), "flops": flops[state.run.id]} for state in states],
        "flops": {
            "total": sum(flops.values()),
            "left": left,
            "budget": study.budget.flops,
            **({"per_run": per_run} if (per_run := study.budget.flops_per_run) is not None else {}),
        },
        "disk_bytes": sum(disk_bytes(run.spec, run_cost(run.spec)) for run in runs),
        "training_seconds_left": None if rate is None else rate * left,
        "left_out": exclusion_lines(excluded),
        "missing_weights": [asdict(one) for one in find_missing(runs, directory)],
    }


def exclusion_lines(excluded: Sequence[ExcludedRun]) -> list[str]:
    """Return a line for each arm and reason, for example `left out: repa layer=2 (3 runs): flow reads no
    encoder`."""
    arms = Counter(
        (run_label({p: v for p, v in one.values.items() if p != "seed"}), one.reason) for one in excluded
    )
    return [f"left out: {arm} ({n} run{'s' * (n > 1)}): {why}" for (arm, why), n in arms.items()]


def seconds_per_flop(runs: Sequence[PlannedRun], directory: Path, flops: Mapping[str, int]) -> float | None:
    """Return the median over this study's runs of training seconds per counted FLOP; None before any has
    trained."""
    found = []
    for run in runs:
        trained = Record(directory / run.id).of("train")
        # The first step is warm-up.
        if len(trained) > 1:
            first, last = trained[0], trained[-1]
            spent = _training_seconds(last) - _training_seconds(first)
            done = flops[run.id] * (last["step"] - first["step"]) / run.spec.train.steps
            found.append(spent / done)
    return statistics.median(found) if found else None


def describe_results(
    study: Study, runs: Sequence[PlannedRun], directory: Path, failures: Mapping[str, str]
) -> dict[str, Any]:
    """Return the results of a study as JSON data: every run with its status and its last evaluation."""
    described = []
    for state in (read_state(run, directory) for run in runs):
        run = state.run
        failed = {"status": "failed", "reason": failures[run.id]} if run.id in failures else {}
        described.append({**_described(state, directory), **_measured(directory / run.id), **failed})
    return {"study": study.name, "directory": str(directory), "runs": described}


def print_plan(plan: Mapping[str, Any]) -> None:
    """Print the result of `describe_plan` as a table, then the costs."""
    runs = plan["runs"]
    table = _runs_table(f"study {plan['study']} in {plan['directory']}", runs)
    for column in ("status", "steps", "FLOPs"):
        table.add_column(column, justify="left" if column == "status" else "right")
    for run in runs:
        columns = [*_axes(run), _status(run), str(run["steps"]), f"{run['flops']:.2e}"]
        table.add_row(*map(Text, columns))
    print_table(table)
    counts = Counter(run["status"] for run in runs)
    total, left = plan["flops"]["total"], plan["flops"]["left"]
    print(f"{len(runs)} runs: " + ", ".join(f"{n} {status}" for status, n in counts.items()))
    for line in plan["left_out"]:
        print(line)
    if plan["missing_weights"]:
        print("missing weights:")
    for line in missing_lines(plan["missing_weights"]):
        print(f"  {line}")
    print(f"training costs {total:.3e} FLOPs in total, {left:.3e} remain")
    print(f"checkpoints and kept weights take {plan['disk_bytes'] / 1e9:.2f} GB (train.keep_checkpoints)")
    if (budget := plan["flops"]["budget"]) is not None:
        print(f"the budget is {budget:.3e} FLOPs" + (", which is too small" if total > budget else ""))
    if "per_run" in plan["flops"]:
        print(_equal_flops(plan))
    seconds = plan["training_seconds_left"]
    if seconds is None:
        print("the time is unknown until a run of this study has trained some steps on this machine")
    elif left:
        print(f"at the speed of the runs so far, that is {seconds / 3600:.2f} device hours of training")


def _equal_flops(plan: Mapping[str, Any]) -> str:
    """Return the sentence about a study whose runs have equal FLOPs."""
    per_run, runs = plan["flops"]["per_run"], plan["runs"]
    least, most = (choose(run["flops"] for run in runs) for choose in (min, max))
    steps = sorted(run["steps"] for run in runs)
    given = "those of its baseline" if per_run == "baseline" else f"{per_run:.3e}"
    spent = f"{most:.3e}" if least == most else f"{least:.3e} to {most:.3e}"
    return (
        f"each run has the steps that fit into equal FLOPs, {given} (budget.flops_per_run): {steps[0]} to "
        f"{steps[-1]} steps, {spent} FLOPs"
    )


def print_results(results: Mapping[str, Any]) -> None:
    """Print the result of `describe_results` as a table, then every failure with its reason."""
    runs = results["runs"]
    # Values of a metric by time or part are in the report and in --json.
    metrics = sorted(without_parts({name: None for run in runs for name in run.get("metrics", {})}))
    table = _runs_table(f"study {results['study']} in {results['directory']}", runs)
    for column in ("status", *metrics, "step", "training"):
        table.add_column(column, justify="left" if column == "status" else "right")
    for run in runs:
        values = [run.get("metrics", {}).get(name) for name in metrics]
        numbers = ["" if value is None else f"{value:.4g}" for value in values]
        training = format_duration(run.get("training_seconds"))
        table.add_row(*map(Text, [*_axes(run), _status(run), *numbers, str(run["step"]), training]))
    print_table(table)
    for run in runs:
        if "reason" in run:
            print(f"{run['label']} ({run['id']}) failed: {run['reason']}")


def make_table(title: str) -> Table:
    """Return an empty table in the style of this package."""
    return Table(title=Text(title), title_justify="left", box=None, padding=(0, 2, 0, 0))


def print_table(table: Table) -> None:
    """Print a table to standard output, 160 columns wide in a pipe or a file."""
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _described(state: RunState, directory: Path) -> dict[str, Any]:
    run = state.run
    described = {
        "id": run.id,
        "label": run.label,
        "cell": run.values,
        "status": state.status,
        "step": state.step,
        "steps": run.spec.train.steps,
    }
    if state.status in ("done", TO_EVALUATE) and (early := Record(directory / run.id).early_end):
        described["ended"] = str(early)
    if state.unmeasured:
        described["unmeasured"] = state.unmeasured
    if state.status == "failed":
        described["reason"] = failure_reason(Record(directory / run.id))
    return described


def _measured(run: Path) -> dict[str, Any]:
    """Return the means of a run's last evaluation, and its training seconds."""
    record = Record(run)
    last, trained = last_evaluation(record), record.last_trained
    metrics = {} if last is None else {name: value["mean"] for name, value in last["metrics"].items()}
    return {"metrics": metrics, "training_seconds": _training_seconds(trained) if trained else 0.0}


def _training_seconds(event: Mapping[str, Any]) -> float:
    return sum(event["seconds"].get(phase, 0.0) for phase in TRAINING_PHASES)


def _runs_table(title: str, runs: Sequence[Mapping[str, Any]]) -> Table:
    table = make_table(title)
    for column in ("run", *runs[0]["cell"]):
        table.add_column(column, no_wrap=True)
    return table


def _axes(run: Mapping[str, Any]) -> list[str]:
    return [run["id"], *(format_value(value) for value in run["cell"].values())]


def _status(run: Mapping[str, Any]) -> str:
    if run["status"] == TO_EXTEND:
        return f"{TO_EXTEND} from step {run['step']}"
    if run["status"] == TO_EVALUATE:
        return f"{TO_EVALUATE} at {run['unmeasured']} steps"
    at = f" at step {run['step']}" if run["status"] in ("stopped", "running") or "ended" in run else ""
    return f"{run['status']}{at}"
