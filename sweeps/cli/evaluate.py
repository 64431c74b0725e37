"""`flowrace eval`: metrics of a run or of all runs of a study, or of samples against a reference."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from harness.cli.evaluate import evaluate_samples, measure_once, measure_run, print_answers, scoring_options
from harness.config.options import JSON_OPTION, STEP_OPTION, set_option
from harness.errors import UserError
from harness.records.evaluations import Conditions
from harness.records.record import SPEC, Record
from harness.records.study_folder import PLAN, StudyFolder
from harness.train.evaluation_questions import Question
from sweeps.cli.tables import make_table, print_table
from sweeps.launch.base import stop_on_signals
from sweeps.launch.evaluations import evaluate_runs
from sweeps.launch.options import LaunchOptions, launch_options, threads_and_launcher
from sweeps.plan.study import run_label

# Any: an evaluation of a run as JSON data.
Answer = Mapping[str, Any]

EPILOG = """\b
Example:
  flowrace eval runs/digits --metrics recall:local --guidance 1,1.5,2
  flowrace eval runs/first/0123456789ab --set eval.samples=2000 --json
  flowrace eval samples.npz --against cifar10-train/ --metrics fid,kid,prdc
  flowrace eval samples.npz --against digits --extractor local
  flowrace eval train/ --extractor inception --save-stats train.safetensors
"""
OF_SAMPLES = ("against", "extractor", "weights", "frames", "save_stats", "download", "overwrite")


@click.command("eval", epilog=EPILOG)
@click.argument("path", metavar="RUN|STUDY|SAMPLES")
@click.option(
    "--metrics",
    help="Comma-separated. For a run or a study, names as in eval.metrics (default: those of its spec). For "
    "samples, default fd: fid, sfid, fd, fd_infinity, kid, cmmd, prdc, pr, pr_torch_fidelity, is, "
    "is_shuffled, memorisation, accuracy, or single values such as recall.",
)
@click.option("--guidance", help="Scales of guidance for a run or a study, for example 1,1.5,2.")
@click.option(
    "--steps",
    metavar="all|last|around-target|N,N",
    help="Steps of a run or a study whose weights are kept. Default: last for a run, all if metrics or "
    "guidance are given or for a study.",
)
@STEP_OPTION
@click.option("--no-record", is_flag=True, help="Measure a run's checkpoint again and record nothing.")
@scoring_options
@set_option(help="Set a field of the spec, for example eval.samples=2000; may be repeated.")
@launch_options
@JSON_OPTION
def evaluate(
    path: str,
    metrics: str | None,
    guidance: str | None,
    steps: str | None,
    step: int | None,
    no_record: bool,
    overrides: tuple[str, ...],
    as_json: bool,
    launch: LaunchOptions,
    **scoring: Any,
) -> None:
    """Evaluate a run, all runs of a study, or samples against a reference.

    RUN: measure kept weights by what its record lacks, append it to the record, and print the answer. Nothing
    is trained. Reports, figures, audits and MLflow show recorded evaluations.

    STUDY: the same for every trained run, in parallel with any launcher. Rerun to resume.

    SAMPLES: a folder of images, an .npz file (arr_0, NHWC, uint8), .npy, .parquet, videos, recordings, or the
    name of a data set. Grey images are repeated to three channels, and transparent images are composited on
    white. Class folders are matched to those of the reference by name. One pass of the extractor serves all
    metrics, and features are cached by content.

    With SAMPLES, --set takes data.resolution, data.channels (.npy is read unchanged), data.image_key and
    data.label_key, for samples and reference, and runtime.device and runtime.threads.
    """
    if not _is_run(Path(path)) and not (Path(path) / PLAN).is_file():
        _check_samples(path, step, guidance, steps, no_record, scoring["against"], scoring["save_stats"])
        return evaluate_samples(path, overrides, as_json, metrics=metrics or "fd", **scoring)
    if given := [name for name in OF_SAMPLES if scoring[name]]:
        raise UserError(
            f"--{given[0].replace('_', '-')} applies to samples, but {path} is a run or a study: draw "
            "samples first with flowrace sample RUN -n 50000 --npz samples.npz, or use --metrics"
        )
    if step is not None and steps is not None:
        raise UserError(f"--step {step} and --steps {steps} are mutually exclusive; give one of them")
    asked = str(step) if step is not None else steps or ""
    question = Question(_names(metrics), _scales(guidance), asked, overrides)
    if not _is_run(Path(path)):
        return _evaluate_study(Path(path), question, launch, as_json)
    if no_record:
        return measure_once(Path(path), question, as_json)
    measure_run(Path(path), question)
    print_answers(Path(path), question.answers(Path(path)), as_json)


def _evaluate_study(directory: Path, question: Question, launch: LaunchOptions, as_json: bool) -> None:
    """Measure what the runs of a study lack, one job for each run, and print the answers."""
    question = question if question.steps else Question(**{**vars(question), "steps": "all"})
    trained = [record for record in StudyFolder(directory).records if record.status == "done"]
    if not trained:
        raise UserError(f"{directory} has no finished run; see: flowrace status {directory}")
    missing = {record.id: question.missing(record.path) for record in trained}
    due = [record for record in trained if missing[record.id]]
    if due:
        click.echo(f"{sum(missing.values())} values of {len(due)} runs are to be measured", err=True)
    failures: dict[str, str] = {}
    if due:
        threads, launcher = threads_and_launcher(launch, [_threads(record) for record in due], directory)
        words = [*_words(question), "--set", f"runtime.threads={threads}"]
        with launcher, stop_on_signals(launcher):
            failures = evaluate_runs(due, directory, words, launcher, _Notes(missing))
            if launcher.stopped_by is not None:
                click.echo("stopped; rerun the same command to resume", err=True)
                sys.exit(130)
    answered = {record.id: question.answers(record.path) for record in trained}
    if as_json:
        click.echo(json.dumps(describe_answers(directory, answered)))
    else:
        print_table(_table(directory, answered))
        click.echo(f"these are the last steps; flowrace report {directory} has all of them", err=True)
    sys.exit(1 if failures else 0)


def describe_answers(directory: Path, answered: Mapping[str, Sequence[Answer]]) -> dict[str, Any]:
    """Return the evaluations of a study's runs as JSON data."""
    labels = {run.id: run_label(run.values) for run in StudyFolder(directory).required_plan.runs}
    runs = [
        {"run": run, "label": labels[run], "path": str(directory / run), "evaluations": list(found)}
        for run, found in answered.items()
    ]
    return {"study": str(directory), "runs": runs}


def _table(directory: Path, answered: Mapping[str, Sequence[Answer]]) -> Table:
    """Return the mean over seeds at the last step, for each arm and each set of conditions."""
    arms: dict[tuple[str, str], list[Answer]] = {}
    shown = [Conditions(**row["conditions"]) for found in answered.values() for row in found]
    for run in StudyFolder(directory).required_plan.runs:
        arm = run_label({path: value for path, value in run.values.items() if path != "seed"})
        by_conditions: dict[str, Answer] = {}
        for row in answered.get(run.id, ()):
            by_conditions[Conditions(**row["conditions"]).name(shown)] = row
        for under, row in by_conditions.items():
            arms.setdefault((arm, under), []).append(row)
    metrics = list(dict.fromkeys(name for rows in arms.values() for row in rows for name in row["metrics"]))
    table = make_table(f"study {StudyFolder(directory).name}")
    for column in ("arm", "conditions", "seeds", "step", *metrics):
        table.add_column(column, justify="left" if column in ("arm", "conditions") else "right", no_wrap=True)
    for (arm, under), rows in arms.items():
        steps = sorted({row["step"] for row in rows})
        values = [
            [row["metrics"][name]["mean"] for row in rows if name in row["metrics"]] for name in metrics
        ]
        means = [f"{statistics.mean(own):.4g}" if own else "" for own in values]
        table.add_row(*map(Text, (arm, under, str(len(rows)), _span(steps), *means)))
    return table


def _mean(rows: Sequence[Answer], metric: str) -> str:
    values = [row["metrics"][metric]["mean"] for row in rows if metric in row["metrics"]]
    return f"{statistics.mean(values):.4g}" if values else ""


def _span(steps: Sequence[int]) -> str:
    return str(steps[0]) if len(steps) == 1 else f"{steps[0]}-{steps[-1]}"


class _Notes:
    """Prints a line when the evaluation of a run starts and when it ends."""

    def __init__(self, missing: dict[str, int]) -> None:
        self.missing = missing

    def __call__(self, record: Record, ended: str | None) -> None:
        method = record.spec.get("method", {}).get("name", "")
        who = f"{method} seed {record.spec.get('seed', 0)} ({record.id})"
        click.echo(f"{who}: {ended or f'measuring {self.missing[record.id]} values'}", err=True)


def _threads(record: Record) -> int:
    """Return the threads of a run's first start, on which its bits depend."""
    return next((start["threads"] for start in record.environment if "threads" in start), 0)


def _words(question: Question) -> Sequence[str]:
    words = [word for override in question.overrides for word in ("--set", override)]
    given = {"metrics": question.metrics, "guidance": [f"{scale:g}" for scale in question.guidance]}
    for name, values in given.items():
        words += [f"--{name}", ",".join(values)] if values else []
    return [*words, "--steps", question.steps]


def _is_run(path: Path) -> bool:
    return (path / SPEC).is_file()


def _names(metrics: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (metrics or "").split(",") if name.strip())


def _scales(guidance: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(scale) for scale in (guidance or "").split(",") if scale.strip())
    except ValueError:
        raise UserError(f"--guidance {guidance}: expected numbers, for example 1,1.5,2") from None


def _check_samples(
    path: str,
    step: int | None,
    guidance: str | None,
    steps: str | None,
    no_record: bool,
    against: str | None,
    save_stats: Path | None,
) -> None:
    """Raise `UserError` for options of runs, and for a path that is neither a run nor samples."""
    given = {"step": step, "steps": steps, "guidance": guidance, "no-record": no_record or None}
    for name, value in given.items():
        if value is not None:
            shown = "" if value is True else f" {value}"
            raise UserError(f"--{name}{shown} applies to a run or a study, but {path} is neither")
    if against is None and save_stats is None and not Path(path).exists():
        raise UserError(
            f"no such run directory: {path}; to evaluate samples, name a reference with --against"
        )
