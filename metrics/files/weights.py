"""Weights as named tensors: from safetensors, or from a checkpoint of torch that holds tensors and nothing that runs."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from metrics.files.media import package
from metrics.value import MetricError

WRAPPINGS = ("model", "module", "state_dict")
"""Keys under which training codes put the weights."""


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of a `.pt` / `.pth` one read with `weights_only`, on the CPU.

    Raises `MetricError` for a file that is neither, or that holds anything else.
    """
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (
        OSError,
        RuntimeError,
        EOFError,
        TypeError,
        pickle.UnpicklingError,
        safetensors.SafetensorError,
    ) as error:
        first = (
            str(error).strip().partition("\n")[0].partition(". ")[0]
        )  # torch goes on to advise the unsafe way
        raise MetricError(f"{file} does not hold weights that can be read safely: {first}") from error
    while isinstance(content, dict) and (inner := [key for key in WRAPPINGS if key in content]):
        content = content[inner[0]]
    if not isinstance(content, dict) or not all(isinstance(x, Tensor) for x in content.values()):
        raise MetricError(f"{file} does not hold named tensors")
    return content


def fill(network: torch.nn.Module, tensors: dict[str, Tensor], file: Path, what: str) -> None:
    """Load the tensors into a network that wants exactly those; raises `MetricError` naming the file and `what` it is not."""
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        lines = str(error).strip().splitlines()
        raise MetricError(f"{file} does not hold the weights of {what}: {lines[-1].strip()}") from error


def pretrained(kind: str, folder: Path, *, extra: str, used: str) -> Any:
    """transformers' network of class `kind` from a local folder; raises `MetricError` where a weight under `used` is missing.

    transformers itself would draw those at random and go on. `used` is a regular expression.
    """
    transformers = package("transformers", extra)
    try:
        network, report = getattr(transformers, kind).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        first = str(error).strip().partition("\n")[0]
        raise MetricError(f"{folder} does not hold transformers' {kind}: {first}") from error
    lost = sorted(name for name in report["missing_keys"] if re.match(used, name))
    if lost:
        raise MetricError(f"{folder} lacks {len(lost)} weights of transformers' {kind}, {lost[0]} the first")
    return network
