"""Checkpoints: atomic, verified, weights only.

A checkpoint is one safetensors file with a sha256 of its tensors in the header. Equal states give equal
bytes. It is written under a temporary name, synced and renamed, so a file with a checkpoint's name is
complete. Its checksum is verified on reading, and nothing is ever unpickled.

    model.*, ema.*, method.*   weights of the student, its moving average and the method
    optimizer.*                exp_avg, exp_avg_sq and step of every learned parameter
    metadata                   run id, step, sha256

`checkpoints/` has them. `ema/` has files with `ema.*` alone, kept for later evaluations.
harness/train/state.py collects and restores them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from harness.config.spec import TrainSpec
from harness.errors import UserError
from harness.files.files import replacing

HEADER, FORMAT = "flowrace", "flowrace-1"
CHECKPOINTS, EMA = "checkpoints", "ema"
"""The folders of a run directory with checkpoints, and with EMA weights kept for later evaluations."""
NEWEST = 2
"""Checkpoints to resume from that are kept unless the spec names a number."""


class Checkpoint(NamedTuple):
    """The tensors and metadata of a checkpoint file."""

    tensors: dict[str, Tensor]
    meta: dict[str, str]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names start with `prefix.`, by name without the prefix."""
        start = f"{prefix}."
        return {name.removeprefix(start): t for name, t in self.tensors.items() if name.startswith(start)}


def save(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> None:
    """Write a checkpoint.

    Raises `UserError` if it cannot be written; no temporary file remains.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = json.dumps({**meta, "format": FORMAT, "sha256": digest(tensors)}, sort_keys=True)
    try:
        with replacing(path) as temporary:
            # A single key, because safetensors writes several keys in random order.
            save_file(tensors, temporary, metadata={HEADER: header})
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write the checkpoint {path}: {error}; free disk space, then rerun the same command"
        ) from error


def load(path: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises `UserError` if it is damaged, or if the file is not a checkpoint.
    """
    try:
        with safe_open(path, "pt") as file:
            meta = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path} is not a readable checkpoint ({error}); {_remedy(path)}") from error
    if meta.get("format") != FORMAT:
        raise UserError(
            f"{path} is a safetensors file but no flowrace checkpoint (its header lacks format = {FORMAT})"
        )
    if meta.get("sha256") != digest(tensors):
        raise UserError(f"{path} is damaged: its content does not match its checksum; {_remedy(path)}")
    return Checkpoint(tensors, meta)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 over names, types, shapes and bytes, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return total.hexdigest()


def path_of(folder: Path, step: int) -> Path:
    """Return the checkpoint file of a step."""
    return folder / f"step-{step:08d}.safetensors"


def step_of(path: Path) -> int:
    """Return the step of a checkpoint file; raises ValueError for any other file name."""
    match = re.fullmatch(r"step-(\d+)\.safetensors", path.name)
    if match is None:
        raise ValueError(f"{path} is not a checkpoint file name (step-<number>.safetensors)")
    return int(match[1])


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint files of a folder, oldest first."""
    return sorted(folder.glob("step-*.safetensors"), key=step_of)


def weights_files(run: Path) -> dict[int, Path]:
    """Return the files with EMA weights of a run by step, in order: those of EMA alone before checkpoints."""
    found = {step_of(file): file for folder in (CHECKPOINTS, EMA) for file in checkpoints(run / folder)}
    return dict(sorted(found.items()))


def precision_of(file: Path) -> str:
    """Return the precision of the EMA weights in a file, from its header."""
    try:
        with safe_open(file, "pt") as content:
            meta = json.loads((content.metadata() or {}).get(HEADER, "{}"))
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{file} is not a readable checkpoint ({error}); {_remedy(file)}") from error
    return meta.get("precision", "float32")


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
    # The second pattern matches the temporary files of safetensors itself.
    for path in (*folder.glob(".*.tmp"), *folder.glob(".tmp*")):
        path.unlink(missing_ok=True)


def _remedy(path: Path) -> str:
    others = [other for other in checkpoints(path.parent) if other != path] if path.parent.is_dir() else []
    if not others:
        return "delete it to start from the beginning"
    return f"delete it to continue from {others[-1].name}"
