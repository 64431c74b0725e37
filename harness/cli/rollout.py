"""`flowrace rollout`: a policy acts in a task in closed loop, and its success with intervals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.config.options import JSON_OPTION, STEP_OPTION
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.environments.base import Environments
    from harness.records.rollouts import Rollout
    from harness.rollouts.rollout import Acting

EPILOG = """\b
Example:
  flowrace rollout runs/policy/0123456789ab --task open-and-place -n 50
  flowrace rollout runs/policy/0123456789ab --task open-and-place --strip strip.png --film film.mp4
  flowrace rollout expert --task metaworld:drawer-open-v3 -n 200 --json
  flowrace rollout replay:demos --task open-and-place -n 20

See also: flowrace list tasks
"""


@click.command(epilog=EPILOG)
@click.argument("policy", metavar="RUN|expert|random|replay:DEMOS")
@click.option("--task", "name", required=True, metavar="TASK", help="Task to act in.")
@click.option(
    "-n",
    "count",
    type=click.IntRange(1, 100_000),
    default=50,
    show_default=True,
    help="Number of episodes.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the records. Default: RUN/rollouts; for the others, rollouts.",
)
@STEP_OPTION
@click.option(
    "--batch", type=click.IntRange(1, 1000), default=50, show_default=True, help="Environments per batch."
)
@click.option(
    "--device",
    metavar="DEVICE",
    help="Device of a run: auto, cpu, cuda or cuda:N. Default: its runtime.device.",
)
@click.option(
    "--strip", type=click.Path(path_type=Path, dir_okay=False), help="Film strip of episodes to write (.png)."
)
@click.option(
    "--film", type=click.Path(path_type=Path, dir_okay=False), help="Film of episodes to write (.mp4)."
)
@click.option(
    "--shown", type=click.IntRange(1, 50), default=4, show_default=True, help="Episodes of strip and film."
)
@JSON_OPTION
def rollout(
    policy: str,
    name: str,
    count: int,
    out: Path | None,
    step: int | None,
    batch: int,
    device: str | None,
    strip: Path | None,
    film: Path | None,
    shown: int,
    as_json: bool,
) -> None:
    """Let a policy act in a task, and print its success with Wilson's interval.

    Starts and noise are fixed: episode i begins at the same start, with the same noise, for every policy.
    A policy plans again after each chunk of actions. Every episode is recorded when it ends. Rerun an
    interrupted command to resume it, or with a larger -n to add episodes.

    The policy is a fine-tuned run, or for checks the scripted expert, uniform random actions, or the recorded
    actions of demonstrations at their own starts.
    """
    from harness.environments.base import open_task
    from harness.files.progress import progress_bar
    from harness.rollouts.named import acting_of
    from harness.rollouts.rollout import folder_name, roll_out

    for file, suffix, option in ((strip, ".png", "--strip"), (film, ".mp4", "--film")):
        _check_picture(file, suffix, option)
    environments = open_task(name)
    if strip is not None or film is not None:
        from harness.rollouts.pictures import check_frames

        check_frames(environments.task)
    acting, usual = acting_of(policy, environments.task, step, batch, device)
    folder = (out or usual) / folder_name(environments.task, acting, batch)
    with progress_bar(count, "episodes", hidden=as_json) as advance:
        found = roll_out(environments, acting, count, folder, batch, advance)
    _draw(environments, acting, strip, film, min(shown, count), batch)
    _print(found, policy, folder, as_json)


def _check_picture(file: Path | None, suffix: str, option: str) -> None:
    if file is not None and (file.suffix != suffix or not file.parent.is_dir()):
        raise UserError(f"{option} {file}: give a file that ends in {suffix}, in an existing folder")


def _draw(
    environments: Environments,
    acting: Acting,
    strip: Path | None,
    film: Path | None,
    shown: int,
    batch: int,
) -> None:
    if strip is None and film is None:
        return
    from harness.files.files import write_atomic, writing
    from harness.rollouts.pictures import film_episodes, film_mp4, strip_png

    episodes = film_episodes(environments, acting, shown, batch)
    if strip is not None:
        with writing(strip):
            write_atomic(strip, strip_png(episodes))
    if film is not None:
        with writing(film):
            write_atomic(film, film_mp4(episodes, environments.task.frames_per_second))


def _print(rollout: Rollout, policy: str, folder: Path, as_json: bool) -> None:
    from harness.rollouts.rollout import results_of

    found, n = results_of(rollout), len(rollout.episodes)
    if as_json:
        about = {"task": rollout.conditions.task, "policy": policy, "n": n, **_row(found.success)}
        about["stages"] = {name: _row(value) for name, value in found.stages.items()}
        reward = found.largest_reward
        about["largest_reward"] = {"mean": reward.mean, "low": reward.low, "high": reward.high}
        click.echo(json.dumps(about | {"out": str(folder)}))
        return
    for name, value in {
        "success": found.success,
        **found.stages,
        "largest reward": found.largest_reward,
    }.items():
        interval = "" if value.low is None else f" ({value.low:.3f} to {value.high:.3f})"
        click.echo(f"{name:<16}{value.mean:.3f}{interval}, {n} starts")
    click.echo(folder)


# Any: a `Value`, which is imported on use.
def _row(value: Any) -> dict[str, float]:
    return {"success": value.mean, "low": value.low, "high": value.high}
