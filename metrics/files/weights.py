"""Weights as named tensors, from safetensors or from a torch checkpoint without code."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from metrics.files.media import package
from metrics.value import MetricError

WRAPPINGS = ("model", "module", "state_dict")
"""Keys under which training code stores the weights in a checkpoint."""


def read_tensors(file: Path, prefix: str = "") -> dict[str, Tensor]:
    """Read the tensors whose names begin with `prefix` from a file, onto the CPU.

    The file is safetensors, or a checkpoint that torch reads with `weights_only`. Raises `MetricError` for
    another format or other content.
    """
    try:
        if file.suffix == ".safetensors":
            with safetensors.safe_open(file, "pt") as tensors:
                names = [name for name in tensors.keys() if name.startswith(prefix)]  # noqa: SIM118
                return {name: tensors.get_tensor(name) for name in names}
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (
        OSError,
        RuntimeError,
        EOFError,
        TypeError,
        pickle.UnpicklingError,
        safetensors.SafetensorError,
    ) as error:
        # Only the first sentence: the next advises to read the file without `weights_only`, which runs code.
        first = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise MetricError(
            f"{file} does not hold weights that can be read safely ({first}); save them as .safetensors"
        ) from error
    while isinstance(content, dict) and (inner := [key for key in WRAPPINGS if key in content]):
        content = content[inner[0]]
    if not isinstance(content, dict) or not all(isinstance(x, Tensor) for x in content.values()):
        raise MetricError(f"{file} does not hold named tensors")
    return {name: tensor for name, tensor in content.items() if name.startswith(prefix)}


def fill(network: torch.nn.Module, tensors: dict[str, Tensor], file: Path, what: str) -> None:
    """Load exactly these tensors into a network.

    Raises `MetricError`, naming the file and `what` it should hold, if they do not match.
    """
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        lines = str(error).strip().splitlines()
        raise MetricError(f"{file} does not hold the weights of {what}: {lines[-1].strip()}") from error


def pretrained(kind: str, folder: Path, *, extra: str, used: str) -> Any:
    """Load transformers' network of class `kind` from a local folder.

    Raises `MetricError` for a missing weight whose name matches the regular expression `used`, because
    transformers would draw it at random.
    """
    transformers = package("transformers", extra)
    try:
        network, report = getattr(transformers, kind).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        first = str(error).strip().partition("\n")[0]
        raise MetricError(f"{folder} does not hold transformers' {kind}: {first}") from error
    missing = sorted(name for name in report["missing_keys"] if re.match(used, name))
    if missing:
        raise MetricError(
            f"{folder} lacks {len(missing)} weights of transformers' {kind}; the first is {missing[0]}"
        )
    return network
