"""Checks of a golden file before anything is computed, so that what fails later is an error of ours.

Shapes are written in letters. A letter has one length in all tensors of a file, and that of the network if it
is one of C, H, W, T, D.

    B  samples    C H W  image    T  image tokens    L D  text tokens and their width
    Z  encoder width    N  steps with noise
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from harness.backbone.config import BackboneConfig
from harness.errors import UserError

SHAPES = {
    "x0": "BCHW", "eps": "BCHW", "t": "B", "s": "B", "u": "B", "y": "B", "mask": "BT", "zs": "BTZ",
    "context": "BLD", "null_context": "LD", "z": "BCHW", "sde_noise": "NBCHW",
}  # fmt: skip
"""Shape of each tensor `in.*`."""
TYPES = {"y": torch.int64, "mask": torch.bool}
"""Type of those that are not floating point."""
LAYERS = ("encoder_depth", "student_layer", "teacher_layer")
COUNTS = ("z_dim", "projector_dim", "num_steps")
FACTORS = ("coefficient", "gamma")
GUIDANCE = ("scale", "low", "high")


class Fields(dict[str, Any]):
    """Tensors or metadata of a golden file; a missing one is an error of the file."""

    def __init__(self, path: Path, part: str, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self._path, self._part = path, part

    def __missing__(self, name: str) -> Any:
        raise UserError(f"{self._path} lacks '{self._part}{name}', which this kind of golden file needs")


def misfit(path: Path, reason: str) -> UserError:
    """Return the error for a file whose tensors or metadata do not fit each other."""
    return UserError(f"{path} has tensors or metadata that do not fit this kind: {reason}")


def check_meta(path: Path, meta: Mapping[str, Any], depth: int) -> None:
    """Raise `UserError` for metadata of another type or range; fields that do not exist are not checked."""
    for name in (name for name in LAYERS if name in meta):
        if not _is_count(meta[name]) or meta[name] > depth:
            raise misfit(path, f"{name} is {meta[name]!r}, expected a layer from 1 to {depth}")
    for name in (name for name in COUNTS if name in meta):
        if not _is_count(meta[name]):
            raise misfit(path, f"{name} is {meta[name]!r}, expected a positive integer")
    for name in (name for name in FACTORS if name in meta):
        if not _is_number(meta[name]):
            raise misfit(path, f"{name} is {meta[name]!r}, expected a number")
    cfg = meta.get("cfg")
    if "cfg" in meta and not (isinstance(cfg, dict) and all(_is_number(cfg.get(n)) for n in GUIDANCE)):
        raise misfit(path, f"cfg is {str(cfg)[:60]!r}, expected the numbers {', '.join(GUIDANCE)}")


def null_label(path: Path, cfg: Mapping[str, Any], classes: int) -> int:
    """Return the label of guidance; raises `UserError` if it is no label of a network with these classes."""
    label = cfg.get("null_label")
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label <= classes:
        raise misfit(path, f"cfg.null_label is {label!r}, expected a label from 0 to {classes}")
    return label


def architecture(path: Path, meta: Mapping[str, Any]) -> tuple[int, int]:
    """Return the numbers of heads and of pixels in a patch's side."""
    arch = meta["arch"]
    heads, patch = (arch.get("num_heads"), arch.get("patch_size")) if isinstance(arch, dict) else (None, None)
    if not (_is_count(heads) and _is_count(patch)):
        raise misfit(path, "arch has no positive integers num_heads and patch_size")
    return heads, patch


def check_given(
    path: Path, given: Mapping[str, Tensor], meta: Mapping[str, Any], config: BackboneConfig
) -> None:
    """Raise `UserError` for a tensor whose type, shape or classes do not fit the others or the network."""
    channels, height, width = config.shape
    lengths = {"C": channels, "H": height, "W": width, "T": height * width // config.patch**2}
    lengths |= {"Z": meta["z_dim"]} if "z_dim" in meta else {}
    text = getattr(config, "text", None)
    lengths |= {"D": text.dim} if text is not None else {}
    for name in (name for name in SHAPES if name in given):
        tensor, letters = given[name], SHAPES[name]
        kind = TYPES.get(name)
        if not (tensor.is_floating_point() if kind is None else tensor.dtype == kind):
            raise misfit(path, f"in.{name} is {tensor.dtype}, expected {kind or 'floating point'}")
        expected = [lengths.setdefault(a, n) for a, n in zip(letters, tensor.shape, strict=False)]
        if tensor.ndim != len(letters) or list(tensor.shape) != expected:
            raise misfit(
                path, f"in.{name} has shape {tuple(tensor.shape)}, expected {_spelled(letters, lengths)}"
            )
    steps = meta.get("num_steps")
    if "sde_noise" in given and steps is not None and len(given["sde_noise"]) < steps - 1:
        raise misfit(path, f"in.sde_noise has noise of {len(given['sde_noise'])} steps, expected {steps - 1}")
    classes = config.classes
    if "y" in given and not ((given["y"] >= 0) & (given["y"] <= classes)).all():
        raise misfit(path, f"in.y has labels outside of 0 to {classes}")


def _spelled(letters: str, lengths: Mapping[str, int]) -> str:
    return f"({', '.join(str(lengths.get(letter, letter)) for letter in letters)})"


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
