"""Checkpoints: atomic, verified, weights only.

A checkpoint is one safetensors file with a sha256 of its tensors in the header; equal states are equal bytes.
It is written under a temporary name, synced and renamed, so a file with a checkpoint's name is complete; it
is verified when it is read; nothing is ever unpickled.
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


class Checkpoint(NamedTuple):
    tensors: dict[str, Tensor]
    meta: dict[str, str]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names start with `prefix.`, without it."""
        start = f"{prefix}."
        return {name.removeprefix(start): t for name, t in self.tensors.items() if name.startswith(start)}


def save(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> None:
    """Write a checkpoint; raises `UserError` if it cannot be written, and leaves no temporary file."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = json.dumps({**meta, "format": FORMAT, "sha256": digest(tensors)}, sort_keys=True)
    try:
        with replacing(path) as temporary:
            # One key, since safetensors shuffles several.
            save_file(tensors, temporary, metadata={HEADER: header})
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write the checkpoint {path}: {error}; free the disk, then run the same command"
        ) from error


def load(path: Path) -> Checkpoint:
    """Read and verify a checkpoint; raises `UserError` for a damaged one, and for a file that is no
    checkpoint."""
    try:
        with safe_open(path, "pt") as file:
            meta = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path} is not a readable checkpoint ({error}); {_remedy(path)}") from error
    if meta.get("format") != FORMAT:
        raise UserError(
            f"{path} is a safetensors file, but not a flowrace checkpoint (no format = {FORMAT} in its header)"
        )
    if meta.get("sha256") != digest(tensors):
        raise UserError(f"{path} is damaged: its content does not match its checksum; {_remedy(path)}")
    return Checkpoint(tensors, meta)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 over names, types, shapes and bytes, in the order of names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return total.hexdigest()


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.safetensors"


def step_of(path: Path) -> int:
    """Return the step of a checkpoint file; raises ValueError for another file."""
    found = re.fullmatch(r"step-(\d+)\.safetensors", path.name)
    if found is None:
        raise ValueError(f"{path} is not named like a checkpoint")
    return int(found[1])


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint files of a folder, oldest first."""
    return sorted(folder.glob("step-*.safetensors"), key=step_of)


def scheduled(step: int, train: TrainSpec) -> bool:
    """Return whether a run saves a checkpoint at a step; a checkpoint at any other step is from a stop."""
    return step == train.steps or step % train.checkpoint_every == 0


def prune(folder: Path, train: TrainSpec) -> None:
    """Keep the newest `keep_checkpoints` of the schedule and the newest of all; delete the others and
    temporary files."""
    found = checkpoints(folder)
    kept = [path for path in found if scheduled(step_of(path), train)][-train.keep_checkpoints :]
    for path in found[:-1]:
        if path not in kept:
            path.unlink()
    for path in (*folder.glob(".*.tmp"), *folder.glob(".tmp*")):  # ours, and what safetensors calls its own
        path.unlink(missing_ok=True)


def _remedy(path: Path) -> str:
    others = [other for other in checkpoints(path.parent) if other != path] if path.parent.is_dir() else []
    if not others:
        return "delete it to start from the beginning"
    return f"delete it to continue from {others[-1].name}"
