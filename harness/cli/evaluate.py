"""`flowrace eval`: the metrics of a run's checkpoint, or of samples against a reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.config.options import JSON_OPTION, STEP_OPTION, set_option
from harness.errors import UserError
from harness.records.record import SPEC
from harness.train.trained_run import evaluate_run, spec_of_run

if TYPE_CHECKING:
    from harness.evaluation.samples.score import Request, Scores

EVAL_EPILOG = """\b
Example:
  flowrace eval runs/first/0123456789ab --set eval.samples=2000 --json
  flowrace eval samples.npz --against cifar10-train/ --metrics fid,kid,prdc
  flowrace eval samples.npz --against digits --extractor local
  flowrace eval train/ --extractor inception --save-stats train.safetensors
"""
SCORING = (
    click.option(
        "--against",
        metavar="REFERENCE",
        help="Real samples in any form of SAMPLES, an ADM reference batch, or a file of --save-stats.",
    ),
    click.option(
        "--metrics",
        default="fd",
        show_default=True,
        help="Comma-separated: fid, sfid, fd, fd_infinity, kid, cmmd, prdc, pr, pr_torch_fidelity, is, "
        "is_shuffled, memorisation, accuracy, or single values such as recall.",
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


def _scoring(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(SCORING):
        command = option(command)
    return command


@click.command("eval", epilog=EVAL_EPILOG)
@click.argument("path", metavar="RUN|SAMPLES")
@_scoring
@STEP_OPTION
@set_option(help="Set a field of the spec, for example eval.samples=2000; may be repeated.")
@JSON_OPTION
def evaluate(path: str, step: int | None, overrides: tuple[str, ...], as_json: bool, **scoring: Any) -> None:
    """Evaluate a checkpoint of a run, or samples against a reference.

    RUN: draw samples with the EMA weights and compute the metrics of the run's spec. The run is not changed.

    SAMPLES: a folder of images, an .npz file (arr_0, NHWC, uint8), .npy, .parquet, videos, recordings, or the
    name of a data set. Grey images are repeated to three channels, and transparent images are composited on
    white. Class folders are matched to those of the reference by name. One pass of the extractor serves all
    metrics, and features are cached by content.

    With SAMPLES, --set takes data.resolution, data.channels (.npy is read unchanged), data.image_key and
    data.label_key, for samples and reference, and runtime.device and runtime.threads.
    """
    if not (Path(path) / SPEC).exists():
        if step is not None:
            raise UserError(f"--step {step} applies to a run, but {path} is not a run directory")
        if scoring["against"] is None and scoring["save_stats"] is None and not Path(path).exists():
            raise UserError(
                f"no such run directory: {path}; to evaluate samples, name a reference with --against"
            )
        return _evaluate_samples(path, overrides, as_json, **scoring)
    given = [name for name in ("against", "extractor", "weights", "frames", "save_stats") if scoring[name]]
    if given or scoring["metrics"] != "fd":
        option = (given or ["metrics"])[0].replace("_", "-")
        raise UserError(
            f"--{option} applies to samples, but {path} is a run: draw samples first with "
            f"flowrace sample {path} -n 50000 --npz samples.npz, or use --set eval.metrics"
        )
    return _evaluate_run(Path(path), step, overrides, as_json)


def _evaluate_run(path: Path, step: int | None, overrides: tuple[str, ...], as_json: bool) -> None:
    file, result = evaluate_run(path, spec_of_run(path, overrides), step)
    values = result.rows
    if as_json:
        found = {"run": path.name, "checkpoint": file.name, "metrics": values, "protocol": result.protocol}
        click.echo(json.dumps(found | ({"errors": result.errors} if result.errors else {})))
        return
    for name, value in values.items():
        shown = f"{name} {value['mean']:.4f}{_interval(value['low'], value['high'])}"
        each = f" in each of {len(value['replicates'])} replicates" if "replicates" in value else ""
        click.echo(f"{shown}  (n = {value['n']}{each}, {file.stem}, protocol {result.protocol})")
    for name, reason in result.errors.items():
        click.echo(f"{name} could not be computed: {reason}", err=True)


def _evaluate_samples(
    path: str,
    overrides: tuple[str, ...],
    as_json: bool,
    save_stats: Path | None,
    overwrite: bool,
    **given: Any,
) -> None:
    from harness.evaluation.samples.score import save_reference, score

    request = _request(path, overrides, **given)
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
    return json.dumps({**found, "protocol": scores.protocol, "warnings": scores.warnings})


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
