"""Demonstrations of a scripted expert on disk, in the layout of LeRobot's data sets (version 2.1).

    data/chunk-000/episode_000000.parquet   one row a step: observation, action, reward, success
    meta/recipe.json       task, its version and the first seed; written first
    meta/episodes.jsonl    length of every episode; tasks.jsonl and episodes_stats.jsonl are LeRobot's
    meta/info.json         features with shapes and names, task, stages; written last, for complete sets, and
                           removed before episodes are added

Episode i begins at the start of seed i. Every file is written atomically, so an interrupted command can be
repeated, and a set can be continued to more episodes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.environments.base import Environments, Observation, Task, no_expert
from harness.environments.episode_file import EPISODE, Steps, episode_bytes, episode_facts, features
from harness.environments.play import Expert, Moment, play
from harness.errors import UserError
from harness.files.files import held, read_text, write_atomic, writing
from harness.files.parse import parse_json

MOST_EPISODES = 100_000
"""Rollouts begin at this seed, so that no demonstration has their starts."""
CHUNK, TOGETHER = 1000, 50
"""Episodes of a folder, and environments that step together."""
RECIPE, INFO, LOCK = "meta/recipe.json", "meta/info.json", "demos.lock"


def episode_file(out: Path, index: int) -> Path:
    return out / "data" / f"chunk-{index // CHUNK:03d}" / f"episode_{index:06d}.parquet"


def write_demonstrations(
    environments: Environments, count: int, out: Path, advance: Callable[[int], None] = lambda _: None
) -> dict[str, Any]:
    """Write the first `count` episodes that are missing, then the facts about the set; return these.

    Raises `UserError` if the task has no expert, or the folder holds something else.
    """
    task = environments.task
    if not task.expert:
        raise no_expert(task, "train on recorded demonstrations in LeRobot's layout")
    with writing(out):
        (out / "meta").mkdir(parents=True, exist_ok=True)
        with held(out / LOCK, f"{out}"):
            _check_recipe(out, task, count)
            if not all(episode_file(out, index).exists() for index in range(count)):
                # A set without it is incomplete, which readers refuse.
                (out / INFO).unlink(missing_ok=True)
            facts = []
            for index, content in _episodes(environments, count, out):
                file = episode_file(out, index)
                if content is not None:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    write_atomic(file, content(sum(one["length"] for one in facts)))
                facts.append(episode_facts(file))
                advance(1)
            return _write_meta(out, task, facts)


def _check_recipe(out: Path, task: Task, count: int) -> None:
    """Write what the folder is going to hold, or compare it with what it holds."""
    recipe = {"task": task.name, "version": task.version, "first_seed": 0}
    file = out / RECIPE
    if not file.exists():
        if any(out.glob("data/*")) or (out / INFO).exists():
            raise UserError(f"--out {out} holds other demonstrations; give another folder")
        write_atomic(file, json.dumps(recipe).encode())
    found = _json_of(file)
    if found != recipe:
        raise UserError(
            f"--out {out} holds demonstrations of another task or version, {json.dumps(found)}, not "
            f"{json.dumps(recipe)}; give another folder"
        )
    if episode_file(out, count).exists():
        raise UserError(f"--out {out} holds more than {count} episodes; give a larger -n, or another folder")


# Any: JSON.
def _json_of(file: Path) -> Any:
    try:
        return parse_json(read_text(file, "JSON"))
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}; give another folder") from error


def _episodes(
    environments: Environments, count: int, out: Path
) -> Iterator[tuple[int, Callable[[int], bytes] | None]]:
    """Yield every episode with the function that encodes it from its first row; None for existing files."""
    missing = [index for index in range(count) if not episode_file(out, index).exists()]
    made: dict[int, Steps] = {}
    for index in range(count):
        if not missing or index < missing[0]:
            yield index, None
            continue
        if index not in made:
            made = _played(environments, missing[:TOGETHER])
        missing.pop(0)
        steps = made.pop(index)
        yield index, lambda first, index=index, steps=steps: episode_bytes(steps, index, first)


def _played(environments: Environments, seeds: Sequence[int]) -> dict[int, Steps]:
    """Play episodes and return their steps by seed."""
    task = environments.task
    all_steps = [Steps(task) for _ in seeds]
    seen: list[Observation] = []

    def after(moment: Moment) -> None:
        observation = seen.pop()
        for row in np.flatnonzero(moment.active):
            one = {name: values[row] for name, values in observation.items()}
            done = bool(moment.succeeded[row]) or moment.step + 1 == task.horizon
            all_steps[row].add(
                one, moment.actions[row], float(moment.rewards[row]), done, bool(moment.succeeded[row])
            )

    # A copy, because frames may be drawn when they are read.
    before = lambda: seen.append(dict(environments.observe()))  # noqa: E731
    for played in play(environments, seeds, Expert(), before, after):
        all_steps[seeds.index(played.seed)].stages = played.stages
    return dict(zip(seeds, all_steps, strict=True))


def _write_meta(out: Path, task: Task, facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    lengths = [one["length"] for one in facts]
    episodes = [
        {EPISODE: index, "tasks": [task.name], "length": length} for index, length in enumerate(lengths)
    ]
    stats = [{EPISODE: index, "stats": one["stats"]} for index, one in enumerate(facts)]
    _write_lines(out / "meta" / "tasks.jsonl", [{"task_index": 0, "task": task.name}])
    _write_lines(out / "meta" / "episodes.jsonl", episodes)
    _write_lines(out / "meta" / "episodes_stats.jsonl", stats)
    info = {
        "codebase_version": "v2.1",
        "robot_type": task.name.partition(":")[0],
        "total_episodes": len(facts),
        "total_frames": sum(lengths),
        "total_tasks": 1,
        "total_videos": 0,
        "total_chunks": -(-len(facts) // CHUNK),
        "chunks_size": CHUNK,
        "fps": task.frames_per_second,
        "splits": {"train": f"0:{len(facts)}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": None,
        "features": features(task),
        "task": task.name,
        "stages": list(task.stages),
        "version": task.version,
        "successes": sum(one["success"] for one in facts),
    }
    write_atomic(out / INFO, (json.dumps(info, indent=1) + "\n").encode())
    return info


def _write_lines(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_atomic(file, "".join(json.dumps(row) + "\n" for row in rows).encode())
