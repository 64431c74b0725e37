"""Embeddings of the network's inputs: patches, extra token, timestep, label (SiT models.py).

B  samples    C  channels    T  tokens    D  width    E  extra channels
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from harness.backbone.tokens import Part


class PatchEmbed(nn.Module):
    """Patches of a part as tokens, by one convolution with the patch as stride.

    The frames of a video token are channels of the convolution, and a part with one axis is an image of one
    row. With a bottleneck, two linear layers without a nonlinearity embed a patch, of which the first has no
    bias (JiT, arXiv 2511.13720, section 4).
    """

    def __init__(self, part: Part, width: int, bottleneck: int = 0) -> None:
        super().__init__()
        self.part = part
        *frames, rows, columns = (1, *part.patch) if len(part.axes) == 1 else part.patch
        self.frames = math.prod(frames)
        channels, patch = part.shape[0] * self.frames, (rows, columns)
        if bottleneck:
            self.reduce = nn.Conv2d(channels, bottleneck, patch, stride=patch, bias=False)
            self.proj = nn.Conv2d(bottleneck, width, 1)
        else:
            self.proj = nn.Conv2d(channels, width, patch, stride=patch)
        self.has_bottleneck = bool(bottleneck)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, T, D) of samples (B, C, *axes)."""
        if len(self.part.axes) == 2:
            return self._tokens(x)
        if len(self.part.axes) == 1:
            return self._tokens(x[:, :, None])
        B, C, F_, H, W = x.shape
        frames = x.reshape(B, C, F_ // self.frames, self.frames, H, W).transpose(1, 2)
        tokens = self._tokens(frames.reshape(-1, C * self.frames, H, W))
        return tokens.reshape(B, -1, tokens.shape[-1])

    def _tokens(self, planes: Tensor) -> Tensor:
        if self.has_bottleneck:
            planes = self.reduce(planes)
        # Contiguous tokens: with the memory layout of the convolution, every block would be slower.
        return self.proj(planes).flatten(2).transpose(1, 2).contiguous()


class ExtraEmbed(nn.Module):
    """The extra token at the network's width: a linear layer, then a layer norm (REG models/sit.py)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, extra: Tensor) -> Tensor:
        """Return the token (B, D) of extra channels (B, E)."""
        return self.norm(self.proj(extra))


class TimestepEmbedder(nn.Module):
    """Sinusoids of t at 128 frequencies (cosines first), then a two-layer MLP."""

    frequency: Tensor

    def __init__(self, width: int, frequencies: int = 128) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width))
        self.register_buffer("frequency", timestep_frequencies(frequencies), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """Return embeddings (..., D) of times t (...)."""
        angle = t[..., None].float() * self.frequency
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1))


class LabelEmbedder(nn.Module):
    """A table of label embeddings, whose last row is the null label.

    Labels are dropped by the feed (harness/data/feed.py), once per sample.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, y: Tensor) -> Tensor:
        """Return embeddings (B, D) of labels (B,)."""
        return self.embedding_table(y)


def timestep_frequencies(count: int) -> Tensor:
    """Return 10000^(-i / count) for i = 0 .. count - 1."""
    return torch.exp(-math.log(10000.0) * torch.arange(count, dtype=torch.float32) / count)
