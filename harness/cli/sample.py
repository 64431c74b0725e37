"""`flowrace sample`: samples of a run as an image grid, a film with sound, or an .npz file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from harness.config.options import STEP_OPTION, layout_option, set_option
from harness.errors import UserError
from harness.train.trained_run import Drawing, dataset_to_draw, drawing_of_run, spec_of_run

SHOWN = 100
"""Number of captions that a picture holds."""
SAMPLE_EPILOG = """\b
Example:
  flowrace sample runs/first/0123456789ab -n 100 -o digits.png
  flowrace sample runs/first/0123456789ab -n 50000 --npz samples.npz --set eval.guidance=1.5
  flowrace sample SiT-XL-2-256.pt --layout sit -n 64 --set data.codec=sd-vae:sd-vae-ft-ema
  flowrace sample runs/films/0123456789ab -n 4 -o films.png --waveform
  flowrace sample runs/bounce-prompts/0123456789ab -n 4 --prompt "a seven bounces twice, fast" -o seven.mp4
  flowrace sample runs/prompts/0123456789ab --prompt "a small red seven left of two large blue ones"
  flowrace sample runs/prompts/0123456789ab --prompts prompts.txt -n 40 --set eval.guidance=2
  torchrun --nproc-per-node 8 -m harness.cli.main sample runs/first/0123456789ab -n 50000 --npz samples.npz
"""


@click.command(epilog=SAMPLE_EPILOG)
@click.argument("path", metavar="RUN|WEIGHTS", type=click.Path(path_type=Path))
@click.option(
    "-n", "count", type=click.IntRange(1), default=100, show_default=True, help="Number of samples."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File: .png for a grid, .mp4 for videos with their sound (extra video), .npz for ADM's evaluator "
    "(arr_0, NHWC, uint8). Default: samples.png.",
)
@click.option(
    "--npz",
    type=click.Path(path_type=Path, dir_okay=False),
    is_flag=False,
    flag_value="samples.npz",
    help="Write an .npz file; without a name, samples.npz.",
)
@click.option(
    "--waveform", is_flag=True, help="Draw the waveform below the frames of a video with its sound (.png)."
)
@click.option("--classes", metavar="A,B,...", help="Classes to draw. Default: all.")
@click.option(
    "--prompt", "prompt", metavar="TEXT", multiple=True, help="Prompt of the samples; several take turns."
)
@click.option(
    "--prompts",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="UTF-8 file with one prompt a line.",
)
@layout_option("Layout of released weights; auto refuses names that fit several layouts.")
@STEP_OPTION
@set_option(help="Set a field of eval or runtime, for example eval.guidance=1.5; may be repeated.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def sample(
    path: Path,
    count: int,
    output: Path | None,
    npz: Path | None,
    waveform: bool,
    classes: str | None,
    prompt: tuple[str, ...],
    prompts: Path | None,
    layout: str,
    step: int | None,
    overrides: tuple[str, ...],
    overwrite: bool,
) -> None:
    """Draw samples from a checkpoint of a run, or from released weights, with the sampler of its spec.

    Sample i depends only on eval.seed, i and its prompt. Without prompts, a run that is conditioned on text
    draws the captions of its evaluations. A .pt or .safetensors file is imported into the cache first. Rerun
    an interrupted command to resume it. Under torchrun, the processes split the samples between them.
    """
    if output and npz:
        raise UserError("--output and --npz both name the file to write; give one of them")
    output = output or npz or Path("samples.png")
    if output.suffix not in (".png", ".npz", ".mp4"):
        raise UserError(
            f"--output {output}: the file must end in .png (a grid), .mp4 (videos with sound) or .npz (ADM's "
            "layout)"
        )
    _check_free(output, overwrite)
    if not output.parent.is_dir():
        raise UserError(f"cannot write {output}: no such folder {output.parent}")
    if path.is_file():
        from harness.exchange.weights_run import run_in_cache

        path, overrides = run_in_cache(path, layout, overrides)
    spec = spec_of_run(path, (*overrides, f"eval.samples={max(count, 2)}"))
    only, given = _classes(classes), (*prompt, *(_prompts(prompts) if prompts else ()))

    from harness.data.dataset import pictured, shapes_of
    from harness.evaluation.npz_export import check_classes, draw_bulk
    from harness.runtime.distributed import join
    from harness.runtime.environment import prepare

    prepare(spec.runtime.threads)
    dataset = dataset_to_draw(path, spec)
    check_classes(only, dataset.classes)
    if output.suffix == ".npz" and dataset.modality != "image":
        raise UserError(
            f"{output}: an .npz in ADM's layout holds images, but these samples are {dataset.modality}; "
            "write a .png"
        )
    if output.suffix == ".mp4" and dataset.modality != "joint":
        raise UserError(
            f"{output}: an .mp4 holds videos with their sound, but these samples are {dataset.modality}; "
            "write a .png"
        )
    if waveform and (dataset.modality != "joint" or output.suffix != ".png"):
        raise UserError(
            f"--waveform draws videos with their sound in a .png; these samples are {dataset.modality}, and "
            f"the file is {output.name}: leave it out"
        )
    with join(spec.runtime.device) as world:
        drawing = drawing_of_run(path, spec, step, count, only, world.device, given)
        # Another command may have written the file in the meantime.
        _check_free(output, overwrite)
        if output.suffix == ".npz":
            draw_bulk(
                drawing.model, drawing.job, drawing.conditions, output, world, drawing.decode, drawing.rule
            )
        elif world.main:
            _write(drawing, output, shapes_of(pictured(dataset)), waveform)
        if world.main:
            click.echo(output)


def _check_free(output: Path, overwrite: bool) -> None:
    if output.exists() and not overwrite:
        raise UserError(f"{output} already exists; give another --output, or --overwrite")


def _write(drawing: Drawing, output: Path, shapes: Sequence[tuple[int, ...]], waveform: bool) -> None:
    """Draw the samples, and write them as a grid or as a film, with their captions."""
    import numpy as np
    import torch

    from harness.evaluation.film_file import film
    from harness.evaluation.sample_grid import count_drawn, films, picture, png
    from harness.files.files import write_atomic

    x = torch.cat(list(drawing.batches())).numpy()
    count = drawing.job.spec.samples
    drawn = count if waveform or output.suffix == ".mp4" else count_drawn(count, shapes)
    captions = drawing.conditions.texts(np.arange(drawn))[:SHOWN]
    if output.suffix == ".mp4":
        content = film(x, shapes, captions)
    else:
        content = png((films if waveform else picture)(x, shapes), captions)
    try:
        write_atomic(output, content)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}") from error


def _prompts(file: Path) -> list[str]:
    """Return the lines of a file that are not empty."""
    from harness.files.files import read_text

    found = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    if not found:
        raise UserError(f"--prompts {file}: the file has no prompt; write one a line")
    return found


def _classes(text: str | None) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")] if text is not None else []
    for word in words:
        if not word.isdecimal() or len(word) > 9:
            raise UserError(
                f"--classes {text}: expected whole numbers separated by commas, for example --classes 3,7"
            )
    return tuple(int(word) for word in words)
