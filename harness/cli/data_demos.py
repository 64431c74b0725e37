"""`flowrace data demos`: episodes of a task's scripted expert as parquet files."""

from __future__ import annotations

import json
from pathlib import Path

import click

from harness.config.options import JSON_OPTION

EPILOG = """\b
Example:
  flowrace data demos open-and-place -n 200 --out demos
  flowrace data demos open-and-place:open -n 200 --out demos-open
  flowrace data demos metaworld:drawer-open-v3 -n 50 --out drawer

Tasks: flowrace list tasks
"""


@click.command(epilog=EPILOG)
@click.argument("task")
# The limit is `demonstrations.MOST_EPISODES`, whose module is imported on use.
@click.option(
    "-n", "count", type=click.IntRange(1, 100_000), default=200, show_default=True, help="Number of episodes."
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for the episodes."
)
@JSON_OPTION
def demos(task: str, count: int, out: Path, as_json: bool) -> None:
    """Record demonstrations of a task's scripted expert, in LeRobot's layout.

    Episode i begins at the start of seed i. A row of a file is a step: frame, state, action, reward and
    success. Episodes that fail are kept, and marked. Rerun an interrupted command to resume it, or with a
    larger -n to add episodes. Fine-tune on the result with --demos OUT.
    """
    from harness.environments.base import open_task
    from harness.environments.demonstrations import write_demonstrations
    from harness.files.progress import progress_bar

    environments = open_task(task)
    with progress_bar(count, "episodes", hidden=as_json) as advance:
        info = write_demonstrations(environments, count, out, advance)
    about = {"out": str(out), "task": task, "episodes": info["total_episodes"]}
    about |= {"steps": info["total_frames"], "successes": info["successes"], "stages": info["stages"]}
    if as_json:
        click.echo(json.dumps(about))
        return
    click.echo(f"{about['episodes']} episodes, {about['steps']} steps, {about['successes']} succeed")
    click.echo(out)
