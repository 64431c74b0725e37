"""The decoder of a representation autoencoder: a ViT from features on a grid to pixels (arXiv 2510.11690).

B  samples    c  channels of features    g  rows and columns of the grid    C, H, W  channels and pixels
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.backbone.sizes import Size
from harness.backbone.tokens import sincos, unpatchify
from harness.encoders.local import Block, initial_weights
from harness.runtime.random_streams import Streams


class Decoder(nn.Module):
    """Pre-norm ViT with a frozen sine-cosine code of positions; each token gives a patch of pixels."""

    def __init__(self, size: Size, channels: int, grid: int, pixels: tuple[int, ...]) -> None:
        super().__init__()
        self.axes, self.patch = pixels[1:], tuple(axis // grid for axis in pixels[1:])
        self.embed = nn.Linear(channels, size.width)
        self.position = nn.Parameter(torch.empty(grid * grid, size.width), requires_grad=False)
        self.blocks = nn.ModuleList(Block(size.width, size.heads) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.width)
        self.predict = nn.Linear(size.width, self.patch[0] * self.patch[1] * pixels[0])

    def forward(self, z: Tensor) -> Tensor:
        """Return images (B, C, H, W) of latents (B, c, g, g)."""
        h = self.embed(z.flatten(2).transpose(1, 2)) + self.position
        for block in self.blocks:
            h = block(h)
        return unpatchify(self.predict(self.norm(h)), self.patch, self.axes)


def initial_decoder(size: Size, channels: int, grid: int, pixels: tuple[int, ...], seed: int) -> Decoder:
    """Return a decoder with initial weights, which depend only on each parameter's name, shape and seed."""
    # Initialisation on the meta device leaves torch's own generator unchanged.
    with torch.device("meta"):
        decoder = Decoder(size, channels, grid, pixels)
    decoder.to_empty(device="cpu")
    streams = Streams(seed)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if parameter is not decoder.position:
                parameter.copy_(initial_weights(f"rae/{name}", parameter.shape, streams))
        decoder.position.copy_(sincos(size.width, (grid, grid))[0])
    return decoder
