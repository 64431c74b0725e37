"""More evaluation replicates where a verdict hangs on them: at both ends of every bracket that the target lies in.

A run's own record stays as it is. What is measured later lies beside it in `replicates.json`, and whoever reads the record's
evaluations sees the means over replicates (`Record.of`).
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from harness.cli.run import AS_JSON
from harness.config.spec import read_toml
from harness.errors import UserError, unknown
from harness.files.json_table import adding_to, write_table
from harness.records.record import REPLICATES, Record, find_records
from harness.records.study_folder import STUDY


@dataclass(frozen=True)
class Wanted:
    """What a study, or the user, is after."""

    metric: str
    target: float


def bracket_steps(record: Record, wanted: Wanted) -> list[int]:
    """The steps of neighbouring evaluations with the target between them, first and sustained crossing alike, rising."""
    seen = [
        (e["step"], e["metrics"][wanted.metric]["mean"])
        for e in record.of("eval")
        if wanted.metric in e["metrics"]
    ]
    pairs = itertools.pairwise(seen)
    return sorted(
        {
            step
            for before, after in pairs
            if (before[1] > wanted.target) != (after[1] > wanted.target)
            for step in (before[0], after[0])
        }
    )


def replicate_run(
    record: Record, steps: Sequence[int], replicates: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Evaluate checkpoints of a run again, with replicates; each step is written as soon as it is measured.

    A step that has as many already is passed over. Raises `UserError` where a checkpoint is gone, and where the evaluation of
    today is not the protocol of the record.
    """
    from harness.cli.run import checkpoint_of_run, spec_of_run
    from harness.data.open import open_dataset, split
    from harness.evaluation.evaluator import Evaluator
    from harness.runtime.distributed import pick_device
    from harness.runtime.environment import prepare
    from harness.train.state import load_ema

    kept = record.replicates
    left = [step for step in steps if _count(kept.get(str(step))) < replicates]
    if not left:
        return
    files = [(step, _checkpoint(record, step, checkpoint_of_run)) for step in left]
    spec = spec_of_run(record.path, (f"eval.replicates={replicates}",))
    prepare(spec.runtime.threads)
    dataset, device = open_dataset(spec.data), pick_device(spec.runtime.device)
    sides = split(dataset, spec.data.held_out)
    evaluator = Evaluator(spec.eval, dataset, sides.train, device)
    known = {event["step"]: event["protocol"] for event in record.of("eval")}
    for step, file in files:
        if known.get(step) != evaluator.protocol:
            raise UserError(
                f"{record.path} was evaluated under protocol {known.get(step)}, which is {evaluator.protocol} today; its numbers "
                "cannot be averaged with new ones"
            )
        result = evaluator(load_ema(file, spec, dataset, device))
        found = {"protocol": result.protocol, "metrics": result.rows}
        with adding_to(record.path / REPLICATES):
            write_table(record.path / REPLICATES, {**Record(record.path).replicates, str(step): found})
        yield step, found


@click.command(epilog="Example: flowrace replicate runs/digits --replicates 3")
@click.argument("directories", nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--metric", help="As in the record, fd:local say. Default: the study's.")
@click.option("--target", type=float, help="The value to reach. Default: the study's.")
@click.option(
    "--replicates", type=click.IntRange(2), default=3, show_default=True, help="Evaluations of each step."
)
@AS_JSON
def replicate(
    directories: tuple[Path, ...], metric: str | None, target: float | None, replicates: int, as_json: bool
) -> None:
    """Evaluate again, with replicates, at both ends of the bracket around each run's crossing of the target.

    Reports and audits then use the means. It needs the checkpoints of those steps: train with train.checkpoint_every equal to
    eval.every and a large train.keep_checkpoints. Run again, it goes on with what is missing.
    """
    told, missing = [], []
    records = find_records(*directories)
    if not records:
        raise UserError(f"no run directory in {', '.join(map(str, directories))}")
    wanted = [_wanted(record, metric, target) for record in records]
    _check_measured(records, {one.metric for one in wanted})
    for record, sought in zip(records, wanted, strict=True):
        steps = bracket_steps(record, sought)
        try:
            for step, found in replicate_run(record, steps, replicates):
                told.append({"run": record.id, "step": step, **found})
                if not as_json:
                    click.echo(_line(record.id, step, found))
        except _Gone as error:
            missing.append(str(error))
            click.echo(f"note: {error}", err=True)
    if as_json:
        click.echo(json.dumps(told, indent=1))
    if missing and not told:
        raise UserError(f"nothing could be evaluated again: {missing[0]}")


class _Gone(UserError):
    """A checkpoint that was pruned."""


def _checkpoint(record: Record, step: int, find: Any) -> Path:
    try:
        return find(record.path, step)
    except UserError as error:
        raise _Gone(
            f"{error}; keep them with train.checkpoint_every = eval.every and a larger train.keep_checkpoints"
        ) from error


def _wanted(record: Record, metric: str | None, target: float | None) -> Wanted:
    file = record.path.parent / STUDY
    asked = read_toml(file).get("target", {}) if file.is_file() else {}
    metric, target = metric or asked.get("metric"), asked.get("value") if target is None else target
    if metric is None or target is None:
        raise UserError(f"{record.path} belongs to no study with a target; give --metric and --target")
    if not (math.isfinite(target) and target > 0):
        raise UserError(f"target {target:g}: expected a number above 0")
    return Wanted(metric, float(target))


def _check_measured(records: Sequence[Record], metrics: Iterable[str]) -> None:
    """Raise `UserError` for a metric that no run has, and where none was evaluated."""
    known = {name for record in records for event in record.of("eval") for name in event["metrics"]}
    if not known:
        raise UserError("no run has been evaluated yet, so there is nothing to evaluate again")
    for metric in metrics:
        if metric not in known:
            raise unknown("metric", metric, known)


def _count(kept: dict[str, Any] | None) -> int:
    return (
        min((len(row.get("replicates", [0])) for row in kept["metrics"].values()), default=0) if kept else 0
    )


def _line(run: str, step: int, found: dict[str, Any]) -> str:
    values = (
        f"{name} {row['mean']:.4g} [{row['low']:.4g}, {row['high']:.4g}]"
        for name, row in found["metrics"].items()
    )
    return f"{run} step {step}: {', '.join(values)}"
