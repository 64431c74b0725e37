"""Files of checkpoints and kept weights in a run directory: names, steps, and which are kept. No torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

# Any: values of JSON.
from typing import Any

from safetensors import SafetensorError, safe_open

from harness.config.training_spec import TrainSpec
from harness.errors import UserError
from harness.files.parse import parse_json

HEADER = "flowrace"
"""The key of the metadata in the header of a file."""
CHECKPOINTS, EMA = "checkpoints", "ema"
"""The folders of a run directory with checkpoints, and with EMA weights kept for later evaluations."""
NAME = re.compile(r"step-([0-9]{1,18})\.safetensors\Z")
"""Names of checkpoints; files of other names are ignored."""
NEWEST = 2
"""Checkpoints to resume from that are kept unless the spec names a number."""


def path_of(folder: Path, step: int) -> Path:
    """Return the checkpoint file of a step."""
    return folder / f"step-{step:08d}.safetensors"


def step_of(path: Path) -> int:
    """Return the step of a checkpoint file; raises ValueError for any other file name."""
    match = NAME.match(path.name)
    if match is None:
        raise ValueError(f"{path} is not a checkpoint file name (step-<number>.safetensors)")
    return int(match[1])


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint files of a folder, oldest first, and none without a folder.

    Files of other names are ignored. A folder that cannot be read for any other reason raises OSError: a run
    that seemed to have no checkpoint would begin again.
    """
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted((folder / name for name in names if NAME.match(name)), key=step_of)


def weights_files(run: Path) -> dict[int, Path]:
    """Return the files with EMA weights of a run by step, in order: those of EMA alone before checkpoints."""
    found = {step_of(file): file for folder in (CHECKPOINTS, EMA) for file in checkpoints(run / folder)}
    return dict(sorted(found.items()))


def precision_of(file: Path) -> str:
    """Return the precision of the EMA weights in a file, from its header."""
    return read_header(file).get("precision", "float32")


def check_exact(file: Path, named: str) -> None:
    """Raise `UserError` if the weights of a named run, from which another one starts, are not float32.

    A checkpoint of their step, which is deleted as the first run continues, would give other bits.
    """
    if (precision := precision_of(file)) != "float32":
        raise UserError(
            f"{file} has the weights of {named} in {precision}; train that run with "
            "train.keep_precision=float32 to start from it"
        )


def read_header(file: Path) -> dict[str, Any]:
    """Return the header of a file of weights; raises `UserError` if the file cannot be read."""
    try:
        with safe_open(file, "numpy") as content:
            return header_of(content.metadata())
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{file} is not a readable file of weights: {error}") from error


def header_of(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """Return the header in the metadata of a safetensors file. Raises `ValueError` if it is no table."""
    header = parse_json((metadata or {}).get(HEADER, "{}"))
    if not isinstance(header, dict):
        raise ValueError(f"its header '{HEADER}' is no table")
    return header


def scheduled(step: int, train: TrainSpec) -> bool:
    """Return whether the schedule has a checkpoint at a step; at other steps a checkpoint marks a stop."""
    return step == train.steps or step % train.checkpoint_every == 0


def prune(folder: Path, train: TrainSpec) -> None:
    """Delete old checkpoints and temporary files.

    `keep_checkpoints` of the scheduled ones are kept, the last ones, and the newest one, scheduled or not.
    """
    files = checkpoints(folder)
    due = [path for path in files if scheduled(step_of(path), train)]
    rule = train.keep_checkpoints
    kept = due if rule == "all" else due[-(NEWEST if rule == "evaluations" else rule) :]
    for path in files[:-1]:
        if path not in kept:
            path.unlink()
    remove_unfinished(folder)


def remove_unfinished(folder: Path) -> None:
    """Delete what a process that was killed left half-written."""
    # The second pattern matches the temporary files of safetensors itself.
    for path in (*folder.glob(".*.tmp"), *folder.glob(".tmp*")):
        path.unlink(missing_ok=True)
