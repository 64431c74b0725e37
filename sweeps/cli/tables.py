"""What a sweep says before and after: its plan with costs, its results, as tables and as JSON."""

from __future__ import annotations

import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.records.record import TRAINING_PHASES, Record
from sweeps.cli.display import clock
from sweeps.plan.budget import count_flops
from sweeps.plan.plan import Cell, LeftOut
from sweeps.plan.run_state import Standing, log_of, reason, standing
from sweeps.plan.study import Study, label, shown


def describe_plan(
    study: Study, cells: Sequence[Cell], directory: Path, left_out: Sequence[LeftOut] = ()
) -> dict[str, Any]:
    """The plan as JSON: every run with its status and counted FLOPs; `left` is what is still to be computed; `left_out` has
    a line for each arm that does not run, with the reason."""
    flops = count_flops(cells)
    standings = [standing(cell, directory) for cell in cells]
    runs = [{**_described(place, directory), "flops": flops[place.cell.id]} for place in standings]
    left = sum(round(flops[place.cell.id] * place.share_left) for place in standings)
    rate = seconds_per_flop(cells, directory, flops)
    return {
        "study": study.name,
        "directory": str(directory),
        "runs": runs,
        "flops": {"total": sum(flops.values()), "left": left, "budget": study.budget.flops},
        "training_seconds_left": None if rate is None else rate * left,
        "left_out": left_out_lines(left_out),
    }


def left_out_lines(left_out: Sequence[LeftOut]) -> list[str]:
    """A line for each arm and reason: `left out: repa layer=2 (3 runs): flow reads no encoder`."""
    arms = Counter(
        (label({p: v for p, v in left.values.items() if p != "seed"}), left.reason) for left in left_out
    )
    return [f"left out: {arm} ({n} run{'s' * (n > 1)}): {why}" for (arm, why), n in arms.items()]


def seconds_per_flop(cells: Sequence[Cell], directory: Path, flops: Mapping[str, int]) -> float | None:
    """Median over this study's runs of training seconds per counted FLOP, from their records; None before any has trained."""
    found = []
    for cell in cells:
        trained = Record(directory / cell.id).of("train")
        if len(trained) > 1:  # the first step is warm-up
            first, last = trained[0], trained[-1]
            spent = _training_seconds(last) - _training_seconds(first)
            done = flops[cell.id] * (last["step"] - first["step"]) / cell.spec.train.steps
            found.append(spent / done)
    return statistics.median(found) if found else None


def describe_results(
    study: Study, cells: Sequence[Cell], directory: Path, failures: Mapping[str, str]
) -> dict[str, Any]:
    """What came of a study as JSON: every run with its status and its last evaluation."""
    runs = []
    for place in (standing(cell, directory) for cell in cells):
        failed = {"status": "failed", "reason": failures[place.cell.id]} if place.cell.id in failures else {}
        runs.append({**_described(place, directory), **_measured(directory / place.cell.id), **failed})
    return {"study": study.name, "directory": str(directory), "runs": runs}


def print_plan(plan: Mapping[str, Any]) -> None:
    """The table of `describe_plan`, costs at the end."""
    runs = plan["runs"]
    table = _table(f"study {plan['study']} in {plan['directory']}", runs)
    for column in ("status", "steps", "FLOPs"):
        table.add_column(column, justify="left" if column == "status" else "right")
    for run in runs:
        cells = [*_axes(run), _status(run), str(run["steps"]), f"{run['flops']:.2e}"]
        table.add_row(*map(Text, cells))
    _print(table)
    counts = {status: sum(run["status"] == status for run in runs) for status in _statuses(runs)}
    total, left = plan["flops"]["total"], plan["flops"]["left"]
    print(f"{len(runs)} runs: " + ", ".join(f"{n} {status}" for status, n in counts.items()))
    for line in plan["left_out"]:
        print(line)
    print(f"training costs {total:.3e} FLOPs in all, {left:.3e} are left")
    if (budget := plan["flops"]["budget"]) is not None:
        print(f"its budget is {budget:.3e} FLOPs" + (", which is not enough" if total > budget else ""))
    seconds = plan["training_seconds_left"]
    if seconds is None:
        print("how long that takes is not known before a run of this study has trained some steps here")
    elif left:
        print(f"at the pace of its runs so far that is {seconds / 3600:.2f} device hours of training")


def print_results(results: Mapping[str, Any]) -> None:
    """The table of `describe_results`, then every failure with its reason."""
    runs = results["runs"]
    metrics = sorted({name for run in runs for name in run.get("metrics", {})})
    table = _table(f"study {results['study']} in {results['directory']}", runs)
    for column in ("status", *metrics, "step", "training"):
        table.add_column(column, justify="left" if column == "status" else "right")
    for run in runs:
        values = [run.get("metrics", {}).get(name) for name in metrics]
        numbers = ["" if value is None else f"{value:.4g}" for value in values]
        cells = [*_axes(run), _status(run), *numbers, str(run["step"]), clock(run.get("training_seconds"))]
        table.add_row(*map(Text, cells))
    _print(table)
    for run in runs:
        if "reason" in run:
            print(f"{run['label']} ({run['id']}) failed: {run['reason']}")


def _described(place: Standing, directory: Path) -> dict[str, Any]:
    cell = place.cell
    described = {
        "id": cell.id,
        "label": cell.label,
        "cell": cell.values,
        "status": place.status,
        "step": place.step,
        "steps": cell.spec.train.steps,
    }
    if place.status == "failed":
        described["reason"] = reason(Record(directory / cell.id), log_of(directory, cell.id))
    return described


def _measured(run: Path) -> dict[str, Any]:
    """The means of the last evaluation, and the seconds that count as training."""
    record = Record(run)
    evaluated, trained = record.of("eval"), record.of("train")
    metrics = {name: value["mean"] for name, value in evaluated[-1]["metrics"].items()} if evaluated else {}
    return {"metrics": metrics, "training_seconds": _training_seconds(trained[-1]) if trained else 0.0}


def _training_seconds(event: Mapping[str, Any]) -> float:
    return sum(event["seconds"].get(phase, 0.0) for phase in TRAINING_PHASES)


def _table(title: str, runs: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=Text(title), title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("run", *runs[0]["cell"]):
        table.add_column(column, no_wrap=True)
    return table


def _axes(run: Mapping[str, Any]) -> list[str]:
    return [run["id"], *(shown(value) for value in run["cell"].values())]


def _status(run: Mapping[str, Any]) -> str:
    at = f" at step {run['step']}" if run["status"] in ("stopped", "running") else ""
    return f"{run['status']}{at}"


def _statuses(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(run["status"] for run in runs))


def _print(table: Table) -> None:
    """Whole lines, also where there is no terminal to fit into."""
    Console(width=None if sys.stdout.isatty() else 160).print(table)
