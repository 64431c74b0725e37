"""Weights from files of any origin: `.pt`, `.safetensors`, and folders of accelerate and diffusers.

Nothing is unpickled but tensors: a `.pt` is read by torch's weights-only reader, which executes no code. The
arguments of a training script (`argparse.Namespace`), which released checkpoints contain, are read as data.

The network is found by its patch embedding. All names that share the beginning of its name are the network's,
so that any nesting (`ema`, `model`, `state_dict`) and any prefix (`module.`, `_orig_mod.`) is taken off by
one rule.
"""

from __future__ import annotations

import argparse
import hashlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from harness.errors import UserError, unknown
from harness.files.parse import parse_json
from harness.records.checkpoint_files import HEADER
from metrics.files.hashing import file_sha256

ANCHOR = "x_embedder.proj.weight"
"""The weight by which a network is found."""
WRAPPED = ("module", "_orig_mod")
"""Parts of names that DataParallel and torch.compile add, at any place."""
WEIGHTS = ("diffusion_pytorch_model", "model", "pytorch_model")
"""Names of weight files in folders of diffusers and accelerate."""
STEPS = ("steps", "step", "train_steps", "global_step")
"""Names of the step in a checkpoint of released training code."""
COUNTERS = ("n_averaged",)
"""Names of tensors next to a network that are no weights: torch's AveragedModel counts its updates."""
OTHER_NETWORKS = {
    "pos_embed.proj.weight": "a diffusers DiT, which predicts noise at 1000 discrete steps, not a velocity",
    "proj_out_1.weight": "a diffusers DiT, which predicts noise at 1000 discrete steps, not a velocity",
    "shadow_params.0": "a moving average without names (shadow_params); save it as a state dict",
}
"""Names of weights of networks that are not read, and what they are."""


@dataclass(frozen=True)
class Source:
    """The weights of one network in a file."""

    path: Path
    sha256: str
    """Hash of the file; for a folder, of the hashes of its weight files."""
    tensors: dict[str, Tensor]
    """Under their released names, float32."""
    part: str = ""
    """The part of the file that was read, for example `ema`; empty if the file holds one network."""
    others: tuple[str, ...] = ()
    """Other parts of the file that hold a network."""
    step: int | None = None
    """The step that the file names."""
    dtype: str = "float32"
    """The type in which the file stores the weights."""
    # Any: the values of a JSON file.
    config: dict[str, Any] = field(default_factory=dict)
    """The `config.json` of a diffusers folder."""


def read_source(path: Path, part: str | None = None) -> Source:
    """Read the weights of a network from a file or a folder.

    `part` names the part to read if there are several; by default the moving average is read. Raises
    `UserError` if the file is missing, damaged, or holds no such network.
    """
    if not path.exists():
        raise UserError(f"no such file: {path}")
    files = _weight_files(path) if path.is_dir() else [path]
    found: dict[str, Any] = {}
    for file in files:
        found.update(_flattened(_content(file)))
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    prefix, others = _chosen(path, tensors, part)
    state = _state(path, tensors, prefix, others)
    return Source(
        path,
        _sha256(files),
        {name: value.to(torch.float32).contiguous() for name, value in state.items()},
        prefix,
        tuple(others),
        _step(found),
        _dtype(path, state),
        _config(files[0].parent) if path.is_dir() else {},
    )


def _weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a folder; raises `UserError` unless they belong to one network."""
    places = [place for place in (folder, folder / "transformer") if place.is_dir()]
    stems = [place / stem for place in places for stem in WEIGHTS]
    ends = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")
    found = [stem.with_name(stem.name + end) for stem in stems for end in ends]
    found = [file for file in found if file.is_file()]
    # The same network in two formats: the first one is the safe one.
    found = [file for file in found if not _has_twin(file, found)]
    if not found:
        raise UserError(
            f"{folder} holds no weights: expected {', '.join(f'{name}.safetensors' for name in WEIGHTS)}, or "
            "the file itself"
        )
    if len(found) > 1:
        names = ", ".join(str(file.relative_to(folder)) for file in found)
        raise UserError(f"{folder} holds several networks ({names}); give one of these files")
    return _shards(found[0]) if found[0].name.endswith(".index.json") else found


def _has_twin(file: Path, found: list[Path]) -> bool:
    stem = file.name.split(".", 1)[0]
    return any(
        other.suffix == ".safetensors" and other.with_name(f"{stem}.safetensors") == other
        for other in found
        if other != file and other.parent == file.parent and other.name.split(".", 1)[0] == stem
    )


def _shards(index: Path) -> list[Path]:
    table = _json(index).get("weight_map")
    if not isinstance(table, Mapping) or not all(isinstance(name, str) for name in table.values()):
        raise UserError(f"{index} has no table `weight_map` of files")
    names = sorted(set(table.values()))
    if any(Path(name).name != name for name in names):
        raise UserError(f"{index} names files outside its folder")
    return [index.parent / name for name in names]


def _content(file: Path) -> Any:
    """Return the content of a file: nested dictionaries with tensors."""
    if file.suffix == ".safetensors":
        return _safetensors(file)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            # Of torch, about the protocol of a pickle that it then refuses.
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    # A damaged or hostile file can raise any error inside the reader.
    except Exception as error:
        reason = str(error).strip().splitlines()
        if "weights only" in str(error).lower() or "WeightsUnpickler" in str(error):
            raise UserError(
                f"{file} holds pickled objects other than tensors, which are never executed; save its state "
                "dict alone, with torch.save(model.state_dict(), FILE) or as .safetensors"
            ) from error
        raise UserError(
            f"cannot read {file} as weights: {reason[0] if reason else type(error).__name__}"
        ) from error


def _safetensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, "pt") as content:
            if HEADER in (content.metadata() or {}):
                raise UserError(
                    f"{file} is a checkpoint of a flowrace run; commands take the run directory itself"
                )
            return {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise UserError(f"cannot read {file} as safetensors: {error}") from error


# Any: a checkpoint holds any JSON-like values.
def _flattened(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value of nested dictionaries and lists under its dotted name, without added parts."""
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(place), item) for place, item in enumerate(value)]
    else:
        yield ".".join(part for part in name.split(".") if part not in WRAPPED), value
        return
    for key, item in items:
        yield from _flattened(item, f"{name}.{key}" if name else key)


def _chosen(path: Path, tensors: Mapping[str, Tensor], part: str | None) -> tuple[str, list[str]]:
    """Return the part of the file to read, and the other ones."""
    parts = [
        name.removesuffix(ANCHOR).rstrip(".")
        for name in tensors
        if name == ANCHOR or name.endswith(f".{ANCHOR}")
    ]
    if not parts:
        raise UserError(f"{path} holds no network of a known layout: {_what_else(tensors)}")
    if part is not None:
        if part not in parts:
            raise unknown(f"part of {path}:", part, [one or "(the top of the file)" for one in parts])
        return part, [one for one in parts if one != part]
    averaged = [one for one in parts if "ema" in one.lower().replace("_", ".").split(".")]
    chosen = parts if len(parts) == 1 else averaged
    if len(chosen) != 1:
        raise UserError(f"{path} holds several networks ({', '.join(parts)}); choose one with --part")
    return chosen[0], [one for one in parts if one != chosen[0]]


def _what_else(tensors: Mapping[str, Tensor]) -> str:
    for end, what in OTHER_NETWORKS.items():
        if any(name == end or name.endswith(f".{end}") for name in tensors):
            return what
    names = ", ".join(list(tensors)[:3])
    return f"no weight is named {ANCHOR}; it has {names}, ..." if names else "it has no tensors"


def _state(path: Path, tensors: Mapping[str, Tensor], prefix: str, others: list[str]) -> dict[str, Tensor]:
    """Return the tensors of a part by the names after its prefix."""
    start = f"{prefix}." if prefix else ""
    nested = tuple(f"{other}." for other in others if other.startswith(start))
    return {
        name.removeprefix(start): value
        for name, value in tensors.items()
        if name.startswith(start) and not (nested and name.startswith(nested))
        if name.removeprefix(start) not in COUNTERS
    }


def _dtype(path: Path, state: Mapping[str, Tensor]) -> str:
    kinds = sorted({str(value.dtype).removeprefix("torch.") for value in state.values()})
    exact = {"float32", "float16", "bfloat16"}
    if not exact.issuperset(kinds):
        wrong = ", ".join(kind for kind in kinds if kind not in exact)
        raise UserError(
            f"{path} stores weights as {wrong}; expected float32, bfloat16 or float16, which float32 holds "
            "exactly"
        )
    return ", ".join(kinds)


def _step(found: Mapping[str, Any]) -> int | None:
    """Return the step that a file names at its top."""
    for name in STEPS:
        value = found.get(name)
        if isinstance(value, Tensor) and value.numel() == 1 and not value.is_floating_point():
            value = value.item()
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    return None


def _sha256(files: list[Path]) -> str:
    hashes = [file_sha256(file) for file in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _config(folder: Path) -> dict[str, Any]:
    return _json(folder / "config.json") if (folder / "config.json").is_file() else {}


def _json(file: Path) -> dict[str, Any]:
    try:
        value = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file}: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} is not a JSON object")
    return value
