"""Conversion of the authors' checkpoints: only this module knows their layouts and time directions.

Some released networks run time the other way (t = 1 is data, velocity = data - noise). Their weights are
rewritten. With the timestep embedding e(t) = [cos wt, sin wt], e(1 - t) = R e(t) for a rotation R by the
angles w, so W e(1 - t) = (W R) e(t). The sign of the output is changed in the last linear layer.

| layout    | source (commit)                              | time       | patch embedding                    |
|-----------|----------------------------------------------|------------|------------------------------------|
| sit       | willisma/SiT 947f95b models.py               | 1 is data  | convolution                        |
| repa      | sihyun-yu/REPA 67f7145 models/sit.py         | 1 is noise | convolution                        |
| sra       | vvvvvjdy/SRA 1723f85 SiT-SRA                 | 1 is noise | convolution                        |
| self-flow | black-forest-labs/Self-Flow 53db4f0 model.py | 1 is data  | linear on tokens (c p1 p2)         |
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from harness.backbone.embed import timestep_frequencies
from harness.backbone.sit import SiT, SiTConfig
from harness.backbone.sizes import SIZES, Size
from harness.errors import UserError, unknown

LAYOUTS = ("sit", "repa", "self-flow", "sra")
_DATA_AT_ONE = ("sit", "self-flow")
_HEADS = ("projectors.", "projector.", "ap_head.")


def load_published(
    state: Mapping[str, Tensor], layout: str, *, heads: int | None = None, patch: int = 2
) -> SiT:
    """Return a SiT in our convention (t = 1 is noise, velocity = noise - data) from a released state dict.

    The unused sigma channels are dropped. `heads` is needed for widths other than the published ones, `patch`
    for layout self-flow, whose weights do not determine it. Raises `UserError` for an unknown layout, or for
    missing, unexpected or misshapen weights.
    """
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    weights = {name: value for name, value in state.items() if not name.startswith(_HEADS)}
    try:
        config = _config(weights, layout, heads, patch)
        weights = _convert(weights, layout, config)
        model = SiT(config)
        model.load_state_dict(weights)
    except KeyError as error:
        raise UserError(f"these weights do not have layout '{layout}': they lack {error.args[0]}") from error
    except (RuntimeError, ValueError) as error:
        raise UserError(f"these weights do not fit layout '{layout}': {error}") from error
    return model


def projector_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a released projector under our names (`0.weight`, `2.weight`, ...).

    The result is empty if the state dict has no projector.
    """
    rename = {"linear1": "0", "linear2": "2"}
    projector = {}
    for name, value in state.items():
        head = next((head for head in _HEADS if name.startswith(head)), None)
        if head is not None:
            *layer, leaf = (
                name.removeprefix(head).removeprefix("0." if head == "projectors." else "").split(".")
            )
            projector[f"{rename.get(layer[0], layer[0])}.{leaf}"] = value
    return projector


def _config(weights: Mapping[str, Tensor], layout: str, heads: int | None, patch: int) -> SiTConfig:
    depth = 1 + max((int(name.split(".")[1]) for name in weights if name.startswith("blocks.")), default=-1)
    width = weights["pos_embed"].shape[-1]
    side = math.isqrt(weights["pos_embed"].shape[1])
    if layout != "self-flow":
        patch = weights["x_embedder.proj.weight"].shape[-1]
        channels = weights["x_embedder.proj.weight"].shape[1]
    else:
        channels = weights["x_embedder.proj.weight"].shape[1] // patch**2
    published = {size.width: size.heads for size in SIZES.values()}
    heads = heads or published.get(width)
    if heads is None:
        raise ValueError(f"width {width} is not a published one ({sorted(published)}): pass `heads`")
    classes = weights["y_embedder.embedding_table.weight"].shape[0] - 1
    return SiTConfig(Size(depth, width, heads), patch, (channels, side * patch, side * patch), classes)


def _convert(weights: dict[str, Tensor], layout: str, config: SiTConfig) -> dict[str, Tensor]:
    channels, patch, width = config.shape[0], config.patch, config.size.width
    converted = dict(weights)
    if layout == "self-flow":
        linear = converted["x_embedder.proj.weight"]
        converted["x_embedder.proj.weight"] = linear.reshape(width, channels, patch, patch)
    for leaf in ("weight", "bias"):
        name = f"final_layer.linear.{leaf}"
        # (p p, C or 2 C, ...)
        rows = converted[name].unflatten(0, (patch * patch, -1))
        converted[name] = rows[:, :channels].flatten(0, 1)
        if layout in _DATA_AT_ONE:
            converted[name] = -converted[name]
    if layout in _DATA_AT_ONE:
        converted["t_embedder.mlp.0.weight"] = _reverse_time(converted["t_embedder.mlp.0.weight"])
    return converted


def _reverse_time(weight: Tensor) -> Tensor:
    """Return W R for R with e(1 - t) = R e(t).

    cos(w - wt) = cos w cos wt + sin w sin wt,    sin(w - wt) = sin w cos wt - cos w sin wt.
    """
    on_cos, on_sin = weight.double().chunk(2, dim=1)
    angle = timestep_frequencies(on_cos.shape[1]).double()
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.cat([on_cos * cos + on_sin * sin, on_cos * sin - on_sin * cos], dim=1).to(weight.dtype)
