"""The work of `flowrace eval` on one run, and on samples against a reference."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.config.options import Command
from harness.errors import UserError
from harness.records.checkpoint_files import step_of
from harness.records.evaluations import Conditions, without_parts
from harness.records.record import Record
from harness.train.evaluation_questions import Question
from harness.train.progress import Quiet
from harness.train.trained_run import evaluate_run

if TYPE_CHECKING:
    from harness.evaluation.samples.score import Request, Scores

SCORING = (
    click.option(
        "--against",
        metavar="REFERENCE",
        help="Real samples in any form of SAMPLES, an ADM reference batch, or a file of --save-stats.",
    ),
    click.option("--extractor", help="Feature extractor (default: inception). See: flowrace list extractors"),
    click.option(
        "--weights",
        type=click.Path(path_type=Path),
        help="File of the extractor's weights, if its name does not include one.",
    ),
    click.option("--download", is_flag=True, help="Download the extractor's weights if missing."),
    click.option(
        "--frames", type=click.IntRange(2), help="Frames in a clip, if the extractor does not fix it."
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(1),
        default=64,
        show_default=True,
        help="Number of samples per pass of the extractor.",
    ),
    click.option(
        "--save-stats",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Write the statistics of SAMPLES to a file that can serve as REFERENCE.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace an existing file."),
)


def scoring_options(command: Command) -> Command:
    """Add the options of samples to a command."""
    for option in reversed(SCORING):
        command = option(command)
    return command


def measure_run(path: Path, question: Question) -> None:
    """Measure what the record of a run lacks to answer a question; rerun to resume."""
    from harness.runtime.distributed import join
    from harness.runtime.environment import prepare
    from harness.train.later_evaluations import measure
    from harness.train.start import threads_of_run

    specs, steps = question.specs(path), question.steps_of(path)
    progress = _OnStandardError()
    prepare(threads_of_run(specs[0], Record(path), progress))
    with join(specs[0].runtime.device) as world:
        for spec in specs:
            for _ in measure(path, spec, steps, world, progress):
                pass


def measure_once(path: Path, question: Question, as_json: bool) -> None:
    """Measure one step of a run again, record nothing, and print the result."""
    found = []
    for spec in question.specs(path):
        for step in question.steps_of(path):
            file, result = evaluate_run(path, spec, step)
            errors = {"errors": result.errors} if result.errors else {}
            about = {"conditions": Conditions.of_spec(spec.eval.model_dump()).as_dict()}
            found.append(
                {
                    "step": step_of(file),
                    **about,
                    "metrics": result.rows,
                    "protocol": result.protocol,
                    **errors,
                }
            )
    print_answers(path, found, as_json)


def print_answers(path: Path, found: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Print the evaluations of a run; as JSON, the fields of a single evaluation are also at the top."""
    if as_json:
        alone = found[0] if len(found) == 1 else {}
        click.echo(json.dumps({**alone, "run": path.name, "path": str(path), "evaluations": list(found)}))
        return
    shown = [Conditions(**row["conditions"]) for row in found]
    for row, conditions in zip(found, shown, strict=True):
        under = conditions.name(shown)
        for name, value in row["metrics"].items():
            each = f" in each of {len(value['replicates'])} replicates" if "replicates" in value else ""
            click.echo(
                f"{name} {value['mean']:.4f}{_interval(value['low'], value['high'])}  (step {row['step']}"
                f"{', ' + under if under else ''}, n = {value['n']}{each}, protocol {row['protocol']})"
            )
        for name, reason in row.get("errors", {}).items():
            click.echo(f"{name} could not be computed at step {row['step']}: {reason}", err=True)


class _OnStandardError(Quiet):
    """Notes on standard error, so that standard output holds the result alone."""

    def note(self, message: str) -> None:
        click.echo(message, err=True)

    # Any: a metric's row as in the record.
    def evaluated(self, step: int, metrics: dict[str, Any]) -> None:
        values = ", ".join(f"{name} {row['mean']:.4g}" for name, row in without_parts(metrics).items())
        self.note(f"measured step {step}: {values}")


def evaluate_samples(
    path: str,
    overrides: tuple[str, ...],
    as_json: bool,
    save_stats: Path | None,
    overwrite: bool,
    **given: Any,
) -> None:
    from harness.evaluation.samples.score import save_reference, score

    request = _request(path, overrides, **given)
    if not as_json:
        request = replace(request, note=lambda text: click.echo(text, err=True))
    if save_stats is None:
        scores = score(request)
        click.echo(_as_json(request, scores) if as_json else _as_text(scores))
        for warning in () if as_json else scores.warnings:
            click.echo(f"warning: {warning}", err=True)
        return
    if given["against"]:
        raise UserError("--save-stats and --against are mutually exclusive; give one of them")
    if save_stats.suffix != ".safetensors":
        raise UserError(f"--save-stats {save_stats}: the file must end in .safetensors")
    if save_stats.exists() and not overwrite:
        raise UserError(f"{save_stats} already exists; give another --save-stats, or --overwrite")
    n = save_reference(request, save_stats)
    click.echo(json.dumps({"statistics": str(save_stats), "n": n}) if as_json else f"{save_stats}  (n = {n})")


def _request(
    path: str, overrides: tuple[str, ...], against: str | None, metrics: str, batch_size: int, **given: Any
) -> Request:
    from harness.assembly.resolve import load_spec
    from harness.evaluation.samples.score import Request
    from harness.runtime.distributed import pick_device
    from harness.runtime.environment import prepare

    for override in overrides:
        if not override.startswith(
            ("data.resolution", "data.channels", "data.image_key", "data.label_key", "runtime.")
        ):
            raise UserError(
                f"--set {override}: {path} is not a run; for samples only data.resolution, data.channels, "
                "data.image_key, data.label_key, runtime.device and runtime.threads can be set"
            )
    # Any preset of images from disk serves: only the fields that the user can set are read.
    spec = load_spec("cifar10", overrides)
    prepare(spec.runtime.threads)
    keys = ("resolution", "channels", "image_key", "label_key")
    data = type(spec.data)(**{key: getattr(spec.data, key) for key in keys})
    names = tuple(name.strip() for name in metrics.split(",") if name.strip())
    return Request(
        samples=path,
        against=against,
        metrics=names,
        extractor=given["extractor"] or ("i3d" if {"fvd", "fvd_infinity"} & set(names) else "inception"),
        weights=given["weights"],
        download=given["download"],
        data=data,
        frames=given["frames"],
        batch=batch_size,
        device=str(pick_device(spec.runtime.device)),
    )


def _as_json(request: Request, scores: Scores) -> str:
    metrics = {name: value.row() for name, value in scores.metrics.items()}
    found = {"samples": request.samples, "against": request.against, "metrics": metrics}
    about = {"data": scores.found, "protocol": scores.protocol, "warnings": scores.warnings}
    return json.dumps(found | about)


def _interval(low: float | None, high: float | None) -> str:
    """Return an interval as text, empty for a value without one."""
    return "" if low is None or high is None else f" [{low:.4f}, {high:.4f}]"


def _as_text(scores: Scores) -> str:
    lines = []
    for name, value in scores.metrics.items():
        noise_floor = ""
        if value.noise_floor:
            noise_floor = (
                f", real against real {value.noise_floor['mean']:.4f} at n = {value.noise_floor['n']}"
            )
        elif name.startswith(("fid", "fd:", "sf", "fvd")):
            noise_floor = ", real against real unknown without raw reference images"
        shown = f"{name} {value.mean:.4f}{_interval(value.low, value.high)}"
        lines.append(f"{shown}  (n = {value.n}, protocol {value.protocol}{noise_floor})")
    shown = {key: value for key, value in scores.protocol.items() if value is not None}
    return "\n".join([*lines, *(f"  {key}: {value}" for key, value in shown.items())])
