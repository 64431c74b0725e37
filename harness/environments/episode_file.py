"""The parquet file of one demonstration: its columns, and the facts that it carries about itself."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from harness.environments.base import Task
from harness.errors import UserError
from harness.files.parse import parse_json
from metrics.files.parquet_files import schema_of
from metrics.value import MetricError

FACTS = b"flowrace"
"""Key of the facts in the file's metadata."""
EPISODE, STEP, ACTION = "episode_index", "frame_index", "action"
STATE, ENVIRONMENT, IMAGE = "observation.state", "observation.environment_state", "observation.image"
REWARD, DONE, SUCCESS, TIME = "next.reward", "next.done", "next.success", "timestamp"
ROW, TASK = "index", "task_index"
"""Columns of LeRobot's layout."""


@dataclass
class Steps:
    """The steps of one episode."""

    task: Task
    observations: list[Mapping[str, np.ndarray]] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    done: list[bool] = field(default_factory=list)
    success: list[bool] = field(default_factory=list)
    stages: Mapping[str, int | None] = field(default_factory=dict)

    def add(
        self,
        observation: Mapping[str, np.ndarray],
        action: np.ndarray,
        reward: float,
        done: bool,
        success: bool,
    ) -> None:
        """Add a step: the observation before its action, and what came of it."""
        self.observations.append(observation)
        self.actions.append(action)
        self.rewards.append(reward)
        self.done.append(done)
        self.success.append(success)


def features(task: Task) -> dict[str, Any]:
    """Return the columns of a task's demonstrations, as LeRobot describes them."""
    found: dict[str, Any] = {}
    if task.frame[0]:
        names = ["height", "width", "channels"]
        found[IMAGE] = {"dtype": "image", "shape": list(task.frame), "names": names}
    for column, numbers in ((STATE, task.state), (ENVIRONMENT, task.environment_state)):
        if numbers:
            found[column] = {"dtype": "float32", "shape": [len(numbers)], "names": list(numbers)}
    found[ACTION] = {"dtype": "float32", "shape": [len(task.actions)], "names": list(task.actions)}
    others = {REWARD: "float32", DONE: "bool", SUCCESS: "bool", TIME: "float32"}
    others |= dict.fromkeys((STEP, EPISODE, ROW, TASK), "int64")
    return found | {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in others.items()}


def episode_bytes(steps: Steps, index: int, first: int) -> bytes:
    """Return the file of an episode; `first` is the number of its first row in the set."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    length = len(steps.actions)
    vectors = {ACTION: np.stack(steps.actions).astype(np.float32)}
    for column, name in ((STATE, "state"), (ENVIRONMENT, "environment_state")):
        if name in steps.observations[0]:
            vectors[column] = np.stack([one[name] for one in steps.observations])
    frames = np.stack([one["image"] for one in steps.observations])
    columns: dict[str, Any] = {}
    if frames.size:
        rows = [{"bytes": png, "path": None} for png in map(_png, frames)]
        columns[IMAGE] = pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    for name, values in vectors.items():
        columns[name] = pa.array(list(values), pa.list_(pa.float32()))
    columns[REWARD] = pa.array(steps.rewards, pa.float32())
    columns[DONE], columns[SUCCESS] = pa.array(steps.done), pa.array(steps.success)
    columns[TIME] = pa.array(np.arange(length) / steps.task.frames_per_second, pa.float32())
    columns[STEP] = pa.array(np.arange(length))
    columns[EPISODE] = pa.array(np.full(length, index))
    columns[ROW] = pa.array(first + np.arange(length))
    columns[TASK] = pa.array(np.zeros(length, dtype=np.int64))
    facts = {"length": length, "success": steps.success[-1], "stages": steps.stages}
    facts["stats"] = {name: _stats(values) for name, values in vectors.items()}
    if frames.size:
        facts["stats"][IMAGE] = _image_stats(frames)
    table = pa.table(columns).replace_schema_metadata({FACTS: json.dumps(facts).encode()})
    content = io.BytesIO()
    pq.write_table(table, content)
    return content.getvalue()


def episode_facts(file: Path) -> dict[str, Any]:
    """Return the facts that a file carries: length, success, stages and statistics.

    Raises `UserError` for a damaged file.
    """
    damaged = UserError(f"{file} is no complete demonstration; delete it and rerun the command")
    try:
        facts = parse_json(schema_of(file).metadata[FACTS])
    except (MetricError, TypeError, KeyError, ValueError) as error:
        raise damaged from error
    kinds = {"length": int, "success": bool, "stages": dict, "stats": dict}
    if not isinstance(facts, dict) or {name: type(value) for name, value in facts.items()} != kinds:
        raise damaged
    return facts


def _png(frame: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(frame).save(content, "png")
    return content.getvalue()


def _stats(values: np.ndarray) -> dict[str, Any]:
    """Return LeRobot's statistics of numbers (length, size)."""
    found = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    return {name: row.tolist() for name, row in found.items()} | {"count": [len(values)]}


def _image_stats(frames: np.ndarray) -> dict[str, Any]:
    """Return LeRobot's statistics of frames, by channel and from 0 to 1."""
    pixels = frames.reshape(-1, 3).astype(np.float64) / 255
    return {
        name: row if name == "count" else [[[value]] for value in row] for name, row in _stats(pixels).items()
    } | {"count": [len(frames)]}
