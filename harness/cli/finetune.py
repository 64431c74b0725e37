"""`flowrace finetune`: a policy from a generative run, on the demonstrations of a task."""

from __future__ import annotations

from pathlib import Path

import click

from harness.cli.run import train_run
from harness.config.options import set_option, track_options

EPILOG = """\b
Example:
  flowrace run demos --set data.root=demos --set data.parts.action.weight=0 --set data.parts.state.weight=0 \\
      --set data.given=first_frame --out runs
  flowrace finetune runs/0123456789ab --task open-and-place --demos demos
  flowrace finetune runs/0123456789ab --task open-and-place --demos demos --frozen
  flowrace finetune demos --from-scratch --task open-and-place --demos demos --set train.steps=1000
"""


@click.command(epilog=EPILOG)
@click.argument("source", metavar="RUN")
@click.option("--task", required=True, help="Task of the demonstrations, in which flowrace rollout acts.")
@click.option(
    "--demos",
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of demonstrations in LeRobot's layout.",
)
@click.option("--step", type=click.IntRange(0), help="Step of the weights of RUN. Default: the newest.")
@click.option(
    "--from-scratch", is_flag=True, help="Start from initial weights; RUN may then be a preset or a spec."
)
@click.option("--frozen", is_flag=True, help="Train the layers of state and actions alone.")
@set_option()
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"), help="Folder of runs."
)
@track_options
@click.option("--quiet", is_flag=True, help="Show no progress.")
def finetune(
    source: str,
    task: str,
    demos: Path,
    step: int | None,
    from_scratch: bool,
    frozen: bool,
    overrides: tuple[str, ...],
    out: Path,
    track: str | None,
    no_track: bool,
    quiet: bool,
) -> None:
    """Fine-tune a run into a policy in OUT/<run id>. Rerun the same command to resume it.

    The network of RUN gets new input and output layers for state and actions. It generates the next six
    actions, with the frames that follow, from the current frame and state. The method is flow unless
    method.name is set, so that policies differ in the weights that they start from.
    """
    from harness.policy.finetune import finetune_spec

    spec = finetune_spec(
        source, demos, task, step=step, from_scratch=from_scratch, frozen=frozen, overrides=overrides
    )
    train_run(spec, out, track, no_track, quiet=quiet)
