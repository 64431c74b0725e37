"""The weights of a run as a file that released code loads with `strict=True`."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.assembly.resolve import load_spec
from harness.backbone.condition import CLIP_L, TextShape
from harness.backbone.config import BackboneConfig
from harness.backbone.kinds import network_of
from harness.backbone.mmdit import MMDiTConfig
from harness.backbone.released_weights import LAYOUTS
from harness.backbone.sit import SiTConfig
from harness.backbone.sizes import size_named
from harness.backbone.tokens import Part, positions
from harness.config.spec import RunSpec
from harness.errors import UserError, unknown
from harness.exchange.convert import PROJECTOR_REQUIRED, Weights, has_projector, to_released
from harness.exchange.layouts import PROJECTORS, Found, find_layout
from harness.exchange.verify import check_convention
from harness.files.files import replacing, writing
from harness.records import checkpoint
from harness.records.integrity import check_owner
from harness.train.trained_run import checkpoint_of_run

DIFFUSERS = "diffusers"
EXPORTS = (*LAYOUTS, DIFFUSERS)
"""Layouts of exports; that of diffusers is a folder with the weights of layout self-flow."""
SUFFIXES = (".pt", ".safetensors")
CODE_TOLERANCE = 1e-4
"""Largest difference of a position code from the released one, which imports may have rounded."""


class Exported(NamedTuple):
    """Weights in a released layout."""

    state: dict[str, Tensor]
    found: Found
    step: int
    notes: tuple[str, ...]
    """Sentences for the user of the file."""


def export_weights(run: Path, layout: str, output: Path, step: int | None = None) -> Exported:
    """Write the EMA weights of a run in a released layout, verified against the released forward pass.

    A `.pt` has the nesting that released code reads; a `.safetensors` has the names alone; layout diffusers
    makes a folder. Raises `UserError` for a network that the layout cannot hold, or for another suffix.
    """
    if layout not in EXPORTS:
        raise unknown("layout", layout, EXPORTS)
    if layout != DIFFUSERS and output.suffix not in SUFFIXES:
        raise UserError(f"--output {output}: the file of weights must end in .pt or .safetensors")
    exported = released_of_run(run, "self-flow" if layout == DIFFUSERS else layout, step)
    with writing(output):
        if layout == DIFFUSERS:
            _write_diffusers(exported, output)
        else:
            with replacing(output) as temporary:
                _write(exported, temporary, output.suffix)
    return exported


def released_of_run(run: Path, layout: str, step: int | None = None) -> Exported:
    """Return the EMA weights of a run in a released layout, with its projectors."""
    spec = load_spec(str(run))
    file = checkpoint_of_run(run, step)
    check_owner(file)
    saved = checkpoint.load(file)
    weights = Weights(saved.part("ema"), saved.part("method"), saved.part("released"))
    weights = Weights(
        {name: value.float() for name, value in weights.network.items()}, weights.projectors, weights.released
    )
    config = _config(spec, weights.network)
    state = to_released(weights, config, layout, source=saved.meta.get("layout", ""))
    found = find_layout(state, layout, config.size.heads, config.patch)
    model = network_of(config)
    model.load_state_dict(weights.network)
    check_convention(state, found, model)
    return Exported(state, found, int(saved.meta["step"]), tuple(_notes(weights, layout)))


def _config(spec: RunSpec, network: dict[str, Tensor]) -> BackboneConfig:
    """Return the backbone of weights, from their shapes and the spec, without opening its data.

    Raises `UserError` unless they are those of square images with the released position code.
    """
    size, patch = size_named(spec.backbone.size), spec.backbone.patch
    if size is None:
        raise UserError(f"backbone.size = {spec.backbone.size} is unknown")
    if spec.backbone.bottleneck:
        raise UserError(
            f"released layouts embed a patch by one layer; this run has backbone.bottleneck = "
            f"{spec.backbone.bottleneck}"
        )
    embedder, code = network["x_embedder.proj.weight"], network.get("pos_embed")
    side = math.isqrt(code.shape[1]) if code is not None else 0
    channels, rows, columns = embedder.shape[1:]
    square = (channels, side * patch, side * patch)
    if code is None or rows != columns or any(name.startswith("beside_embedders") for name in network):
        raise UserError(
            "released layouts hold networks of square images with sine-cosine positions; this run has other "
            "samples or backbone.positions"
        )
    expected = positions(size.width, [Part(square, (patch, patch))]) if side else code[:, :0]
    same = code.shape == expected.shape and bool((code - expected).abs().max() <= CODE_TOLERANCE)
    # Imported weights have the position code of their file.
    if not same and not spec.start.weights:
        raise UserError(
            "released layouts hold networks of square images; the position code of this run is not theirs"
        )
    outputs = network["final_layer.linear.weight"].shape[0]
    learn_sigma = outputs == 2 * channels * patch**2
    extra = network.get("extra_embedder.proj.weight")
    extra = 0 if extra is None else extra.shape[1]
    if (context := network.get("context_embedder.weight")) is not None:
        text = TextShape(context.shape[1], CLIP_L.length)
        return MMDiTConfig(
            size, patch, square, 1, learn_sigma, extra, prediction=spec.flow.prediction, text=text
        )
    classes = network["y_embedder.embedding_table.weight"].shape[0] - 1
    return SiTConfig(size, patch, square, classes, learn_sigma, extra, prediction=spec.flow.prediction)


def _notes(weights: Weights, layout: str) -> list[str]:
    if has_projector(weights, layout) or not PROJECTORS[layout].prefix:
        return []
    if layout in PROJECTOR_REQUIRED:
        return ["the run has no projector; the one of the released network is filled with zeros"]
    return ["the run has no projector; build the released network without one (for REPA, z_dims = [])"]


def _write(exported: Exported, file: Path, suffix: str) -> None:
    if suffix == ".safetensors":
        save_file(exported.state, file, metadata={"format": "pt", "step": str(exported.step)})
        return
    # Self-Flow's sample.py reads names at the top; the others read `ema`.
    plain = exported.found.layout == "self-flow"
    content = exported.state if plain else {"ema": exported.state, "steps": exported.step}
    # Given a path, torch writes its name into the file, and equal weights would give other bytes.
    with open(file, "wb") as opened:
        torch.save(content, opened)


def _write_diffusers(exported: Exported, folder: Path) -> None:
    """Write a folder as Self-Flow-diffusers af337f9 `convert_selfflow_to_diffusers.py` does."""
    partial = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "transformer").mkdir(parents=True)
    (partial / "scheduler").mkdir()
    save_file(
        exported.state,
        partial / "transformer" / "diffusion_pytorch_model.safetensors",
        metadata={"format": "pt"},
    )
    _write_json(partial / "transformer" / "config.json", _transformer(exported.found))
    _write_json(partial / "scheduler" / "scheduler_config.json", SCHEDULER)
    _write_json(partial / "model_index.json", INDEX)
    partial.rename(folder)


# Any: the values of a JSON file.
def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


# Any: the values of a JSON file.
def _transformer(found: Found) -> dict[str, Any]:
    channels, height, _ = found.shape
    return {
        "_class_name": "SelfFlowTransformer2DModel",
        "input_size": height,
        "patch_size": found.patch,
        "in_channels": channels,
        "hidden_size": found.size.width,
        "depth": found.size.depth,
        "num_heads": found.size.heads,
        "mlp_ratio": 4.0,
        # With the null label, because the released network drops no labels itself.
        "num_classes": found.classes + 1,
        "class_dropout_prob": 0.0,
        "learn_sigma": found.learn_sigma,
        "per_token_timestep": True,
    }


SCHEDULER = {
    "_class_name": "SelfFlowFlowMatchScheduler",
    "num_train_timesteps": 1000,
    "path_type": "Linear",
    "prediction": "velocity",
    "sampling_method": "Euler",
    "diffusion_form": "sigma",
    "diffusion_norm": 1.0,
    "last_step": "Euler",
    "last_step_size": 0.04,
    "reverse": True,
}
INDEX = {
    "_class_name": "SelfFlowPipeline",
    "_diffusers_version": "0.30.1",
    "scheduler": ["scheduling_flow_match_selfflow", "SelfFlowFlowMatchScheduler"],
    "transformer": ["diffusers", "SelfFlowTransformer2DModel"],
}
