"""Checkpoints: atomic, verified, weights only.

A checkpoint is one safetensors file with a sha256 of its tensors in the header. Equal states give equal
bytes. It is written under a temporary name, synced and renamed, so a file with a checkpoint's name is
complete. Its checksum is verified on reading, and nothing is ever unpickled.

    model.*, ema.*, method.*   weights of the student, its moving average and the method
    optimizer.*                the optimizer's tensors of every learned parameter, for AdamW exp_avg,
                               exp_avg_sq and step
    metadata                   run id, step, sha256

`checkpoints/` has them. `ema/` has files with `ema.*` alone, kept for later evaluations.
harness/train/state.py collects and restores them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from harness.errors import UserError
from harness.files.files import replacing
from harness.records.checkpoint_files import HEADER, checkpoints, header_of

FORMAT = "flowrace-1"


class DamagedCheckpoint(UserError):
    """A file whose content is no checkpoint, or does not match its checksum."""


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
        # Errors of safetensors have no number.
        full = any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT))
        remedy = "free disk space, then rerun the same command" if full else "the same command continues"
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"cannot write the checkpoint {path}: {reason}; {remedy}") from error


def load(path: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises `DamagedCheckpoint` if it is damaged, and `UserError` if the file cannot be read, which does not
    mean that it is damaged, or if it is not a checkpoint.
    """
    try:
        # Opened first, because safetensors gives one reason for everything that prevents it.
        with open(path, "rb"), safe_open(path, "pt") as file:
            meta = header_of(file.metadata())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot read {path}: {reason}; correct this, then rerun the same command") from error
    except (ValueError, SafetensorError) as error:
        raise DamagedCheckpoint(f"{path} is not a readable checkpoint ({error}); {_remedy(path)}") from error
    if meta.get("format") != FORMAT:
        raise UserError(
            f"{path} is a safetensors file but no flowrace checkpoint (its header lacks format = {FORMAT})"
        )
    if meta.get("sha256") != digest(tensors):
        raise DamagedCheckpoint(
            f"{path} is damaged: its content does not match its checksum; {_remedy(path)}"
        )
    return Checkpoint(tensors, meta)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 over names, types, shapes and bytes, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return total.hexdigest()


def _remedy(path: Path) -> str:
    others = [other for other in checkpoints(path.parent) if other != path] if path.parent.is_dir() else []
    if not others:
        return "delete it to start from the beginning"
    return f"delete it to continue from {others[-1].name}"
