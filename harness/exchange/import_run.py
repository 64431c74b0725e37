"""The run directory of imported weights, which every command takes as it takes a trained run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.assembly.build import backbone_config
from harness.assembly.resolve import PRESETS, is_run, load_table, resolve
from harness.backbone.condition import TextShape
from harness.backbone.config import BackboneConfig
from harness.backbone.kinds import network_of
from harness.backbone.mmdit import MMDiTConfig
from harness.backbone.sizes import name_of_size
from harness.config.parts import nested_setting
from harness.config.spec import RunSpec
from harness.config.tables import merge, parse_override, set_path
from harness.data.open import outlined
from harness.errors import UserError
from harness.exchange.convert import Weights, to_ours
from harness.exchange.layouts import Found, find_layout
from harness.exchange.reading import Source
from harness.exchange.verify import check_convention
from harness.records import checkpoint
from harness.records.checkpoint_files import EMA, path_of, remove_unfinished
from harness.records.record_writer import RecordWriter

PRESET = "imagenet256"
"""The preset that imported networks of latents are based on."""
LATENT_CHANNELS = 4
PIXELS_PER_LATENT = 8
"""The downscaling of the SD-VAE, which the released networks of latents use."""


class Imported(NamedTuple):
    """Weights that were read and verified, before their directory is written."""

    source: Source
    found: Found
    weights: Weights
    difference: float
    """Largest difference from the released forward pass, relative to the largest velocity."""

    @property
    def digest(self) -> str:
        """Return the hash of the weights in our convention, which the run id depends on."""
        return checkpoint.digest(self.weights.tensors())


def convert(
    source: Source, layout: str = "auto", heads: int | None = None, patch: int | None = None
) -> Imported:
    """Return weights in our convention, verified against the released forward pass.

    The `config.json` of a diffusers folder determines heads and patch if they are not given.
    """
    heads, patch = heads or _number(source, "num_heads"), patch or _number(source, "patch_size")
    found = find_layout(source.tensors, layout, heads, patch)
    weights = to_ours(source.tensors, found)
    _check_finite(source)
    model = network_of(found.config)
    model.load_state_dict(weights.network)
    return Imported(source, found, weights, check_convention(source.tensors, found, model))


def _check_finite(source: Source) -> None:
    """Raise `UserError` for weights that are not finite, also those that the forward pass does not reach."""
    for name, tensor in source.tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserError(f"{source.path}: {name} has values that are not finite; the file is damaged")


def write_run(imported: Imported, out: Path, step: int | None = None, overrides: Sequence[str] = ()) -> Path:
    """Write the run directory of imported weights in `out`, and return it; an existing one is left as it is.

    `overrides` set fields of its spec. Raises `UserError` if the data of the spec do not fit the network.
    """
    step = (imported.source.step or 0) if step is None else step
    spec = _spec(imported, step, overrides)
    _check_data(spec, imported.found)
    path = out / spec.id
    if is_run(path) and path_of(path / EMA, step).exists():
        return path
    meta = {
        "run": spec.id,
        "step": str(step),
        "imported": imported.digest,
        "layout": imported.found.layout,
        "method": imported.found.method,
    }
    with RecordWriter(path) as record:
        (path / EMA).mkdir(exist_ok=True)
        remove_unfinished(path / EMA)
        checkpoint.save(path_of(path / EMA, step), imported.weights.tensors(), meta)
        about = {"started": int(time.time() * 1000), "imported": described(imported)}
        # An import that was killed before its last write has left its event.
        record.begin(about, after_step=step, keep=lambda event: event["kind"] != "import")
        images = step * spec.train.batch_size
        record.append({"kind": "import", "step": step, "images": images, "flops": 0, "seconds": {}})
        # Last, because a folder with a spec is a run.
        record.write_spec(spec.to_toml())
    return path


def described(imported: Imported) -> dict[str, Any]:
    """Return what was read and found, as JSON for the record."""
    source, found = imported.source, imported.found
    return {
        "source": source.path.name,
        "sha256": source.sha256,
        "part": source.part,
        "other_parts": list(source.others),
        "step": source.step,
        "dtype": source.dtype,
        "layout": found.layout,
        "size": name_of_size(found.size),
        "patch": found.patch,
        "shape": list(found.shape),
        "classes": None if found.text_dim else found.classes,
        "text_dim": found.text_dim or None,
        "learn_sigma": found.learn_sigma,
        "extra_token": found.extra,
        "projectors": list(found.projectors),
        "difference": imported.difference,
    }


def _number(source: Source, name: str) -> int | None:
    value = source.config.get(name)
    return value if isinstance(value, int) and value > 0 else None


def _spec(imported: Imported, step: int, overrides: Sequence[str]) -> RunSpec:
    found = imported.found
    given: dict[str, Any] = {}
    for override in overrides:
        set_path(given, *nested_setting(*parse_override(override)))
    own: dict[str, Any] = {
        "backbone": {
            "size": name_of_size(found.size),
            "patch": found.patch,
            "learn_sigma": found.learn_sigma,
        },
        "start": {"weights": imported.digest, "step": step},
        "train": {"steps": max(1, step)},
        "method": {"name": "reg" if found.extra else "flow"},
        # Compilation pays off in training, and takes minutes before the first sample.
        "runtime": {"compile": False},
    }
    if found.text_dim:
        own["backbone"]["kind"] = "mmdit"
    if given.get("data", {}).get("name", "latents") == "latents":
        if found.shape[0] != LATENT_CHANNELS and "codec" not in given.get("data", {}):
            raise UserError(
                f"this network generates {_by(found.shape)}, which are not latents of the SD-VAE: name its "
                "data, for example --set data.name=digits, or --set data.name=folder --set data.root=FOLDER"
            )
        data = {"resolution": PIXELS_PER_LATENT * found.shape[1], "classes": found.classes}
        own = merge(load_table(PRESET), {**own, "data": data})
    elif (name := given["data"]["name"]) in PRESETS.names():
        # Its evaluation suits its data: that of latents would take hours on small pictures.
        own["eval"] = load_table(name).get("eval", {})
    return resolve(merge(own, given), where="import")


def _check_data(spec: RunSpec, found: Found) -> None:
    """Raise `UserError` unless the network of the spec is the imported one."""
    config = backbone_config(spec, outlined(spec.data))
    expected = _on_texts_of(config, found)
    if config.shape != found.shape or config.classes != expected.classes:
        raise UserError(
            f"this network generates {_by(found.shape)} of {found.classes} classes, but data.name = "
            f"'{spec.data.name}' has {_by(config.shape)} of {config.classes}; name other data with "
            "--set data.name"
        )
    if isinstance(config, MMDiTConfig) and config.text.dim != found.text_dim:
        raise UserError(
            f"this network reads text tokens of {found.text_dim} features, but those of the spec's text "
            f"encoder have {config.text.dim}; name another one with --set text.encoder"
        )
    if config.outputs or config.fused:
        part = "a further final layer" if config.outputs else "a fusion of blocks"
        raise UserError(
            f"method.name = {spec.method.name} adds {part} to the network, which the imported "
            "one lacks; leave out --set method.name"
        )
    if config != expected:
        raise UserError(
            f"the settings describe another network than the imported one: {config}, instead of "
            f"{expected}; leave out --set backbone.*, and for REG name the encoder with "
            "--set method.encoder.name"
        )


def _on_texts_of(config: BackboneConfig, found: Found) -> BackboneConfig:
    """Return the network of a file, with classes, text length and text time of a configuration.

    The weights of a text-conditioned network do not determine these.
    """
    if not (found.text_dim and isinstance(config, MMDiTConfig)):
        return found.config
    return MMDiTConfig(
        found.size,
        found.patch,
        found.shape,
        config.classes,
        found.learn_sigma,
        text=TextShape(found.text_dim, config.text.length),
        text_time=config.text_time,
    )


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
