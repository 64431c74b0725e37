"""Conversion of the authors' checkpoints: only this module knows their layouts and time directions.

Some released networks run time the other way (t = 1 is data, velocity = data - noise). Their weights are
rewritten. With the timestep embedding e(t) = [cos wt, sin wt], e(1 - t) = R e(t) for a rotation R by the
angles w, so W e(1 - t) = (W R) e(t). The sign of the output is changed in the last linear layer.

| layout    | source (commit)                              | time       | patch embedding                    |
|-----------|----------------------------------------------|------------|------------------------------------|
| sit       | willisma/SiT 947f95b models.py               | 1 is data  | convolution                        |
| repa      | sihyun-yu/REPA 67f7145 models/sit.py         | 1 is noise | convolution                        |
| irepa     | End2End-Diffusion/iREPA 99ad4ac ldm          | 1 is noise | convolution                        |
| reg       | Martinser/REG 021ea2e models/sit.py          | 1 is noise | convolution; an extra token        |
| sra       | vvvvvjdy/SRA 1723f85 SiT-SRA                 | 1 is noise | convolution                        |
| self-flow | black-forest-labs/Self-Flow 53db4f0 model.py | 1 is data  | linear on tokens (c p1 p2)         |
| mmdit     | sihyun-yu/REPA 67f7145 models/mmdit.py       | 1 is noise | convolution; text, no label table  |
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from harness.backbone.condition import CLIP_L, TextShape
from harness.backbone.config import BackboneConfig
from harness.backbone.embed import timestep_frequencies
from harness.backbone.kinds import network_of
from harness.backbone.mmdit import MMDiTConfig
from harness.backbone.network import Backbone
from harness.backbone.sit import SiTConfig
from harness.backbone.sizes import SIZES, Size
from harness.errors import UserError, unknown

LAYOUTS = ("sit", "repa", "self-flow", "sra", "irepa", "reg", "mmdit")
DATA_AT_ONE = ("sit", "self-flow")
"""Layouts whose time runs the other way."""
TIME_WEIGHT = "t_embedder.mlp.0.weight"
"""The weight that a change of the time direction rewrites."""
MMDIT_HEAD = 32
"""Channels of a head of released MMDiTs, whose number of heads is not in their weights."""
HEADS = ("projectors.", "projector.", "ap_head.")
"""Beginnings of the names of projectors, which are no part of the network."""
_EXTRA = {
    "cls_projectors2.": "extra_embedder.proj.",
    "wg_norm.": "extra_embedder.norm.",
    "final_layer.linear_cls.": "final_layer.linear_extra.",
}
"""Names of REG's extra token: theirs and ours."""
_JOINT = {"joint_blocks.": "blocks."}
"""Names of MMDiT's blocks: theirs and ours."""


def load_published(
    state: Mapping[str, Tensor], layout: str, *, heads: int | None = None, patch: int = 2
) -> Backbone:
    """Return a network in our convention (t = 1 is noise, velocity = noise - data) of a released state dict.

    The unused sigma channels are dropped. `heads` is needed for widths other than the published ones, `patch`
    for layout self-flow, whose weights do not determine it. Raises `UserError` for an unknown layout, or for
    missing, unexpected or misshapen weights.
    """
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    weights = {name: value for name, value in state.items() if not name.startswith(HEADS)}
    try:
        config = _config(weights, layout, heads, patch)
        weights = to_our_weights(weights, layout, config)
        model = network_of(config)
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
        head = next((head for head in HEADS if name.startswith(head)), None)
        if head is not None:
            *layer, leaf = (
                name.removeprefix(head).removeprefix("0." if head == "projectors." else "").split(".")
            )
            # A weight outside of a layer keeps its name, by which loading rejects it.
            first = [rename.get(layer[0], layer[0])] if layer else []
            projector[".".join([*first, leaf])] = value
    return projector


def _config(weights: Mapping[str, Tensor], layout: str, heads: int | None, patch: int) -> BackboneConfig:
    blocks = "joint_blocks." if layout == "mmdit" else "blocks."
    depth = 1 + max((int(name.split(".")[1]) for name in weights if name.startswith(blocks)), default=-1)
    width = weights["pos_embed"].shape[-1]
    side = math.isqrt(weights["pos_embed"].shape[1])
    if layout != "self-flow":
        patch = weights["x_embedder.proj.weight"].shape[-1]
        channels = weights["x_embedder.proj.weight"].shape[1]
    else:
        channels = weights["x_embedder.proj.weight"].shape[1] // patch**2
    shape = (channels, side * patch, side * patch)
    heads = heads or published_heads(width, layout)
    if layout == "mmdit":
        text = TextShape(weights["context_embedder.weight"].shape[1], CLIP_L.length)
        return MMDiTConfig(Size(depth, width, heads), patch, shape, 1, text=text)
    classes = weights["y_embedder.embedding_table.weight"].shape[0] - 1
    extra = weights["cls_projectors2.weight"].shape[1] if layout == "reg" else 0
    return SiTConfig(Size(depth, width, heads), patch, shape, classes, extra=extra)


def published_heads(width: int, layout: str) -> int:
    """Return the number of heads of released networks of a width; raises ValueError if no rule gives one."""
    if layout == "mmdit":
        # The released network has heads of 32 channels at every width.
        if width % MMDIT_HEAD == 0:
            return width // MMDIT_HEAD
        raise ValueError(f"width {width} is not a multiple of {MMDIT_HEAD}: pass `heads`")
    published = {size.width: size.heads for size in SIZES.values()}
    if width not in published:
        raise ValueError(f"width {width} is not a published one ({sorted(published)}): pass `heads`")
    return published[width]


def to_our_weights(weights: Mapping[str, Tensor], layout: str, config: BackboneConfig) -> dict[str, Tensor]:
    """Return released weights without projectors under our names, in our convention.

    The sigma channels are kept if the configuration has them. Raises KeyError for a missing weight, and
    ValueError for a position code that our network cannot have.
    """
    channels, patch, width = config.shape[0], config.patch, config.size.width
    converted = {_renamed(name, _names(layout)): value for name, value in weights.items()}
    if layout == "self-flow":
        linear = converted["x_embedder.proj.weight"]
        converted["x_embedder.proj.weight"] = linear.reshape(width, channels, patch, patch)
    if layout == "reg":
        extra, code = converted["pos_embed"].split([1, converted["pos_embed"].shape[1] - 1], dim=1)
        if extra.any():
            raise ValueError("pos_embed has a position for the extra token, which is zero in released code")
        converted["pos_embed"] = code
    for leaf in ("weight", "bias"):
        name = f"final_layer.linear.{leaf}"
        velocity, sigma = _output_rows(converted[name], config)
        if layout in DATA_AT_ONE:
            velocity = -velocity
        converted[name] = _joined_rows(velocity, sigma if config.learn_sigma else None)
    if layout in DATA_AT_ONE:
        converted[TIME_WEIGHT] = reverse_time(converted[TIME_WEIGHT])
    return converted


def to_released_weights(
    weights: Mapping[str, Tensor], layout: str, config: BackboneConfig, *, sigma: bool
) -> dict[str, Tensor]:
    """Return our weights under the names of a layout, in its convention, without projectors.

    With `sigma` the last layer has sigma channels, which are zero if the network has none.
    """
    theirs = {ours: name for name, ours in _names(layout).items()}
    released = {_renamed(name, theirs): value for name, value in weights.items()}
    if layout == "self-flow":
        released["x_embedder.proj.weight"] = released["x_embedder.proj.weight"].flatten(1)
    if layout == "reg":
        released["pos_embed"] = torch.nn.functional.pad(released["pos_embed"], (0, 0, 1, 0))
    for leaf in ("weight", "bias"):
        name = f"final_layer.linear.{leaf}"
        velocity, unused = _output_rows(released[name], config)
        if sigma and unused is None:
            unused = torch.zeros_like(velocity)
        if layout in DATA_AT_ONE:
            velocity = -velocity
        released[name] = _joined_rows(velocity, unused if sigma else None)
    if layout in DATA_AT_ONE:
        # R is its own inverse: e(t) = R e(1 - t) = R R e(t).
        released[TIME_WEIGHT] = reverse_time(released[TIME_WEIGHT])
    return released


def _names(layout: str) -> Mapping[str, str]:
    return _JOINT if layout == "mmdit" else _EXTRA


def _renamed(name: str, table: Mapping[str, str]) -> str:
    start = next((start for start in table if name.startswith(start)), "")
    return table.get(start, "") + name.removeprefix(start)


def _output_rows(rows: Tensor, config: BackboneConfig) -> tuple[Tensor, Tensor | None]:
    """Return the rows of velocity and of sigma, each (p p, C, ...); sigma is None without such rows."""
    channels = config.shape[0]
    rows = rows.unflatten(0, (config.patch**2, -1))
    return rows[:, :channels], rows[:, channels:] if rows.shape[1] > channels else None


def _joined_rows(velocity: Tensor, sigma: Tensor | None) -> Tensor:
    rows = velocity if sigma is None else torch.cat([velocity, sigma], dim=1)
    return rows.flatten(0, 1).contiguous()


def reverse_time(weight: Tensor) -> Tensor:
    """Return W R for R with e(1 - t) = R e(t).

    cos(w - wt) = cos w cos wt + sin w sin wt,    sin(w - wt) = sin w cos wt - cos w sin wt.
    """
    on_cos, on_sin = weight.double().chunk(2, dim=1)
    angle = timestep_frequencies(on_cos.shape[1]).double()
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.cat([on_cos * cos + on_sin * sin, on_cos * sin - on_sin * cos], dim=1).to(weight.dtype)
