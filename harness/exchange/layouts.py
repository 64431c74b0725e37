"""Layouts of released networks: which one a file has, and the size of its network, from names and shapes.

Networks of SiT, REPA, SRA and DiT differ in the names of their projectors only, and SiT runs time backwards.
So the names of a file without a projector fit several layouts, and the user has to choose one.

D  width    C  channels    p  patch    T  tokens    E  extra channels
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from harness.backbone.condition import CLIP_L, TextShape
from harness.backbone.config import BackboneConfig
from harness.backbone.mmdit import MMDiTConfig
from harness.backbone.released_weights import HEADS, LAYOUTS, published_heads
from harness.backbone.sit import SiTConfig
from harness.backbone.sizes import Size
from harness.errors import UserError, unknown

NOT_READ = {
    "dit": "a network that predicts noise at 1000 discrete steps, which no change of its weights turns into "
    "the velocity of the linear path",
}
"""Layouts that are known, and why they are not read."""
CHOICES = ("auto", *LAYOUTS, *NOT_READ)
Shape = tuple[int, ...]


class Projector(NamedTuple):
    """A layout's name for the projectors that training adds, and the method of ours that has them."""

    prefix: str
    method: str


PROJECTORS = {
    "sit": Projector("", "flow"),
    "repa": Projector("projectors.", "repa"),
    "irepa": Projector("projectors.", "irepa"),
    "reg": Projector("projectors.", "reg"),
    "sra": Projector("ap_head.", "sra"),
    "self-flow": Projector("projector.", "self_flow"),
    "mmdit": Projector("projectors.", "repa"),
}


@dataclass(frozen=True)
class Found:
    """A network, found from names and shapes."""

    layout: str
    size: Size
    patch: int
    shape: Shape
    """(channels, height, width) of a sample."""
    classes: int
    learn_sigma: bool
    extra: int
    """Channels of REG's extra token; 0 for none."""
    projectors: tuple[str, ...]
    """Names of the weights of projectors."""
    text_dim: int = 0
    """Features of a text token; 0 for a network that is conditioned on labels."""

    @property
    def config(self) -> BackboneConfig:
        """The backbone of these weights, which do not determine the length of texts."""
        shape = self.size, self.patch, self.shape, self.classes, self.learn_sigma
        if self.text_dim:
            return MMDiTConfig(*shape, text=TextShape(self.text_dim, CLIP_L.length))
        return SiTConfig(*shape, extra=self.extra)

    @property
    def method(self) -> str:
        """The method of ours that has the projectors of this layout."""
        has_mlp = any(re.match(r"projectors\.\d+\.projection_layer\.\d", name) for name in self.projectors)
        return "repa" if has_mlp else PROJECTORS[self.layout].method


def find_layout(
    weights: Mapping[str, Tensor], layout: str = "auto", heads: int | None = None, patch: int | None = None
) -> Found:
    """Return the layout and the size of a network; `heads` and `patch` are needed where shapes leave them
    open.

    Raises `UserError` for a layout that is not read, for several possible ones, and for weights that are
    missing, unexpected or misshapen.
    """
    if layout not in CHOICES:
        raise unknown("layout", layout, CHOICES)
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    layout = _detected(shapes) if layout == "auto" else layout
    if layout in NOT_READ:
        raise UserError(f"layout '{layout}' is {NOT_READ[layout]}")
    try:
        found = _measured(shapes, layout, heads, patch)
    except KeyError as error:
        raise UserError(f"these weights do not have layout '{layout}': they lack {error.args[0]}") from error
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise UserError(f"these weights do not have layout '{layout}': {error}") from error
    _check(shapes, found)
    return found


def network_shapes(found: Found) -> dict[str, Shape]:
    """Return the names and shapes of the weights of a released network, without its projectors."""
    depth, width, _ = found.size
    channels, height, *_ = found.shape
    values = channels * found.patch**2
    tokens = (height // found.patch) ** 2
    embedded = (values,) if found.layout == "self-flow" else (channels, found.patch, found.patch)
    linears: dict[str, Shape] = {
        "x_embedder.proj": (width, *embedded),
        "t_embedder.mlp.0": (width, 256),
        "t_embedder.mlp.2": (width, width),
        "final_layer.linear": (values * (1 + found.learn_sigma), width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    }
    if found.text_dim:
        linears["context_embedder"] = (width, found.text_dim)
    for block in range(depth):
        if found.text_dim:
            start = f"joint_blocks.{block}"
            linears |= _of_block(f"{start}.context_block", width, pre_only=block == depth - 1)
            linears |= _of_block(f"{start}.x_block", width)
        else:
            linears |= _of_block(f"blocks.{block}", width)
    if found.layout == "reg":
        linears |= {
            "cls_projectors2": (width, found.extra),
            "final_layer.linear_cls": (found.extra, width),
            "wg_norm": (width,),
        }
    shapes: dict[str, Shape] = {"pos_embed": (1, tokens + (found.layout == "reg"), width)}
    if not found.text_dim:
        shapes["y_embedder.embedding_table.weight"] = (found.classes + 1, width)
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def _of_block(name: str, width: int, *, pre_only: bool = False) -> dict[str, Shape]:
    """Return the linear layers of a block; a `pre_only` one ends with its keys and values."""
    first = {
        f"{name}.attn.qkv": (3 * width, width),
        f"{name}.adaLN_modulation.1": ((2 if pre_only else 6) * width, width),
    }
    rest = {
        f"{name}.attn.proj": (width, width),
        f"{name}.mlp.fc1": (4 * width, width),
        f"{name}.mlp.fc2": (width, 4 * width),
    }
    return first if pre_only else first | rest


def _detected(shapes: Mapping[str, Shape]) -> str:
    """Return the only layout that has such names; raises `UserError` with the choices if there are more."""
    if any(name.startswith(("context_embedder.", "joint_blocks.")) for name in shapes):
        return "mmdit"
    if len(shapes.get("x_embedder.proj.weight", ())) == 2:
        return "self-flow"
    if "wg_norm.weight" in shapes:
        return "reg"
    if any(".projection_layer." in name for name in shapes):
        return "irepa"
    if any(name.startswith("projectors.") for name in shapes):
        return "repa"
    if any(name.startswith("ap_head.") for name in shapes):
        return "sra"
    raise UserError(
        "these names fit several layouts: choose --layout sit (time 1 is data, velocity = data - noise), or "
        "repa, sra or irepa (time 1 is noise, velocity = noise - data; all three are read alike). A DiT has "
        "the same names, but it predicts noise, and is not read"
    )


def _measured(shapes: Mapping[str, Shape], layout: str, heads: int | None, patch: int | None) -> Found:
    blocks = [int(match[1]) for name in shapes if (match := re.match(r"(?:joint_)?blocks\.(\d+)\.", name))]
    depth = 1 + max(blocks, default=-1)
    embedder, code = shapes["x_embedder.proj.weight"], shapes["pos_embed"]
    width, is_text = embedder[0], layout == "mmdit"
    # Texts have no table, and their data any number of classes.
    rows = 2 if is_text else shapes["y_embedder.embedding_table.weight"][0]
    patch, channels = _patch(embedder, layout, patch)
    side = math.isqrt(tokens := code[1] - (layout == "reg"))
    if side * side != tokens or side == 0:
        raise ValueError(f"pos_embed has {tokens} tokens, which form no square")
    if rows < 2:
        raise ValueError("the label table has one row: expected those of the classes and the null label")
    values = channels * patch**2
    outputs = shapes["final_layer.linear.weight"][0]
    if outputs not in (values, 2 * values):
        raise ValueError(
            f"final_layer.linear has {outputs} outputs; expected {values}, or {2 * values} with sigma, for "
            f"patch {patch} and {channels} channels"
        )
    return Found(
        layout,
        Size(depth, width, _heads(width, heads, layout)),
        patch,
        (channels, side * patch, side * patch),
        rows - 1,
        outputs == 2 * values,
        shapes["cls_projectors2.weight"][1] if layout == "reg" else 0,
        tuple(name for name in shapes if name.startswith(HEADS)),
        shapes["context_embedder.weight"][1] if is_text else 0,
    )


def _patch(embedder: Shape, layout: str, patch: int | None) -> tuple[int, int]:
    """Return the patch and the number of channels."""
    if layout != "self-flow":
        if len(embedder) != 4 or embedder[2] != embedder[3]:
            raise ValueError(f"x_embedder.proj.weight has shape {embedder}, expected a square convolution")
        if patch not in (None, embedder[2]):
            raise ValueError(f"--patch {patch}, but the convolution has patch {embedder[2]}")
        return embedder[2], embedder[1]
    if len(embedder) != 2:
        raise ValueError(f"x_embedder.proj.weight has shape {embedder}, expected a linear layer on tokens")
    # The released network has patch 2; the shape of a linear layer leaves it open.
    patch = patch or 2
    if embedder[1] % patch**2:
        raise ValueError(f"tokens of {embedder[1]} values have no patch of {patch}x{patch}; give --patch")
    return patch, embedder[1] // patch**2


def _heads(width: int, heads: int | None, layout: str) -> int:
    try:
        heads = heads or published_heads(width, layout)
    except ValueError as error:
        choices = [str(n) for n in range(1, 33) if width % n == 0 and width // n >= 8]
        raise ValueError(
            f"shapes do not determine the number of attention heads, and width {width} is not a published "
            f"one; give --heads, one of {', '.join(choices)}"
        ) from error
    if width % heads:
        raise ValueError(f"--heads {heads} does not divide the width {width}")
    return heads


def _check(shapes: Mapping[str, Shape], found: Found) -> None:
    """Raise `UserError` unless names and shapes are those of the layout."""
    own = PROJECTORS[found.layout].prefix
    expected = network_shapes(found)
    given = {name: shape for name, shape in shapes.items() if not own or not name.startswith(own)}
    missing, unexpected = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    wrong = [
        f"{name} is {given[name]} instead of {expected[name]}"
        for name in sorted(expected.keys() & given.keys())
        if given[name] != expected[name]
    ]
    problems = [
        f"{what} {_listed(names)}"
        for what, names in (("lack", missing), ("also have", unexpected), ("have another shape:", wrong))
        if names
    ]
    if problems:
        raise UserError(f"these weights do not have layout '{found.layout}': they {'; they '.join(problems)}")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
