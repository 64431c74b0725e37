"""The released MMDiT's forward pass, restated in plain torch from REPA's models/mmdit.py, under its names.

It shares no code with the package: a token-wise time, attention by products, two streams in full.

    B  samples    T  image tokens    L  text tokens    D  width    N  heads
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

State = Mapping[str, Tensor]


def shapes(
    depth: int, width: int, channels: int, patch: int, side: int, dim: int
) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the released weights for images of `side` pixels and text of `dim`
    features."""
    values = channels * patch * patch
    linears = {
        "t_embedder.mlp.0": (width, 256),
        "t_embedder.mlp.2": (width, width),
        "context_embedder": (width, dim),
        "final_layer.linear": (values, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
        "x_embedder.proj": (width, channels, patch, patch),
    }
    for block in range(depth):
        for stream in ("context_block", "x_block"):
            name = f"joint_blocks.{block}.{stream}"
            ends = stream == "context_block" and block == depth - 1
            linears[f"{name}.attn.qkv"] = (3 * width, width)
            linears[f"{name}.adaLN_modulation.1"] = ((2 if ends else 6) * width, width)
            if not ends:
                linears[f"{name}.attn.proj"] = (width, width)
                linears[f"{name}.mlp.fc1"] = (4 * width, width)
                linears[f"{name}.mlp.fc2"] = (width, 4 * width)
    found: dict[str, tuple[int, ...]] = {"pos_embed": (1, (side // patch) ** 2, width)}
    for name, shape in linears.items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return found


def random_state(seed: int, **sizes: int) -> dict[str, Tensor]:
    """Return random weights with the sine-cosine code of the released network."""
    draws = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(shape, generator=draws) / 8 for name, shape in shapes(**sizes).items()}
    state["pos_embed"] = position_code(sizes["width"], sizes["side"] // sizes["patch"])
    return state


def position_code(width: int, grid: int) -> Tensor:
    """Return the code (1, T, D): sines and cosines of the column, then those of the row."""
    row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    frequency = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angles = [place.flatten()[:, None].double() * frequency for place in (column, row)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()[None]


def velocity(
    state: State, heads: int, x: Tensor, t: Tensor, context: Tensor, tap: int = 0
) -> tuple[Tensor, Tensor]:
    """Return the velocity of x (B, C, H, H) at times t (B,) or (B, T), and the image tokens after block
    `tap`."""
    weight = state["x_embedder.proj.weight"]
    width, channels, patch, _ = weight.shape
    side = x.shape[-1] // patch
    cells = x.unfold(2, patch, patch).unfold(3, patch, patch).permute(0, 2, 3, 1, 4, 5)
    h = cells.reshape(len(x), side * side, -1) @ weight.flatten(1).T + state["x_embedder.proj.bias"]
    h = h + state["pos_embed"]
    tokens = t if t.ndim == 2 else t[:, None]
    c, c_text = _silu(_time(state, tokens)), _silu(_time(state, tokens).mean(dim=1, keepdim=True))
    text, hidden = _linear(state, "context_embedder", context), h
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("joint_blocks."))
    for block in range(depth):
        text, h = _block(state, f"joint_blocks.{block}", heads, text, h, c_text, c)
        hidden = h if block + 1 == tap else hidden
    shift, scale = _linear(state, "final_layer.adaLN_modulation.1", c).split(width, dim=-1)
    out = _linear(state, "final_layer.linear", _modulated(h, shift, scale))
    image = out.reshape(len(x), side, side, patch, patch, channels).permute(0, 5, 1, 3, 2, 4)
    return image.reshape(x.shape), hidden


def project(state: State, name: str, tokens: Tensor) -> Tensor:
    """Return REPA's three-layer projection of tokens."""
    hidden = _silu(_linear(state, f"{name}.0", tokens))
    return _linear(state, f"{name}.4", _silu(_linear(state, f"{name}.2", hidden)))


def _block(
    state: State, name: str, heads: int, text: Tensor, h: Tensor, c_text: Tensor, c: Tensor
) -> tuple[Tensor, Tensor]:
    streams = {"context_block": (text, c_text), "x_block": (h, c)}
    mods, parts = {}, {}
    for stream, (tokens, condition) in streams.items():
        width = tokens.shape[-1]
        mods[stream] = _linear(state, f"{name}.{stream}.adaLN_modulation.1", condition).split(width, dim=-1)
        inner = _modulated(tokens, mods[stream][0], mods[stream][1])
        parts[stream] = _linear(state, f"{name}.{stream}.attn.qkv", inner).split(width, dim=-1)
    q, k, v = (torch.cat(each, dim=1) for each in zip(parts["context_block"], parts["x_block"], strict=True))
    B, S, D = q.shape
    q, k, v = (a.reshape(B, S, heads, D // heads).transpose(1, 2) for a in (q, k, v))
    weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(D // heads), dim=-1)
    mixed = (weights @ v).transpose(1, 2).reshape(B, S, D).split([text.shape[1], h.shape[1]], dim=1)
    outputs = []
    for (stream, (tokens, _)), own in zip(streams.items(), mixed, strict=True):
        if len(mods[stream]) == 2:
            outputs.append(tokens)
            continue
        _, _, gate, shift, scale, gate_mlp = mods[stream]
        tokens = tokens + gate * _linear(state, f"{name}.{stream}.attn.proj", own)
        inner = _gelu(_linear(state, f"{name}.{stream}.mlp.fc1", _modulated(tokens, shift, scale)))
        outputs.append(tokens + gate_mlp * _linear(state, f"{name}.{stream}.mlp.fc2", inner))
    return outputs[0], outputs[1]


def _time(state: State, t: Tensor) -> Tensor:
    frequency = torch.exp(-math.log(10000) * torch.arange(128) / 128)
    angle = t[..., None] * frequency
    hidden = _linear(state, "t_embedder.mlp.0", torch.cat([angle.cos(), angle.sin()], dim=-1))
    return _linear(state, "t_embedder.mlp.2", _silu(hidden))


def _modulated(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    centred = h - h.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * (1 + scale) + shift


def _linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def _gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
