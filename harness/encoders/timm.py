"""Frozen vision transformers of timm with tokens on a grid: DINOv2, DINOv3, CLIP, MAE, SigLIP and others.

Images are prepared as REPA prepares them for DINOv2 (REPA utils.py, train.py at 67f7145). They are normalised
with the model's mean and deviation, then resized (bicubic) so that the tokens fill the backbone's grid. For
16x16 tokens of patch 14 that is 224 pixels. The position embedding is resampled to that grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from torch import Tensor, nn

from harness.data.dataset import Dataset
from harness.encoders.base import (
    Architecture,
    EncoderChoice,
    Viewer,
    attention_of,
    count_flops,
    no_attention,
    parse_name,
)
from harness.encoders.weights import on_disk, user_errors
from harness.errors import UserError
from harness.flow.batch import View
from metrics.extractors.timm import TimmNetwork, create, fill, hub_copy
from metrics.files.hashing import file_sha256
from metrics.files.weights import read_tensors

UNUSED = ("head.", "fc.", "fc_norm.", "attn_pool.", "mask_token")
"""Tensors that a file may hold although the network lacks them: classifier, pooling, pretraining."""


class TimmEncoder(Viewer):
    """Any ViT of timm by name; weights from a safetensors file, or from the hub if `download` is set."""

    def __init__(
        self,
        choice: EncoderChoice,
        dataset: Dataset,
        *,
        grid: tuple[int, int],
        held_out: float,
        device: torch.device,
    ) -> None:
        model = parse_name(choice.name)[1]
        about = self.architecture(model, dataset.shape, dataset.classes, grid)
        self.name, self.grid, (self.dim, self.flops, self.heads) = choice.name, grid, about
        with user_errors():
            file = on_disk(choice, *hub_copy(model))
            self.sha256 = file_sha256(file)
            network = create(model)
            fill(network, read_tensors(file), file, f"encoder '{choice.name}'", UNUSED)
        self._size = _pixels(network, grid)
        network.set_input_size(img_size=self._size)
        self.params = sum(p.numel() for p in network.parameters())
        self._network: TimmNetwork = network.to(device).requires_grad_(False).eval()
        self._mean, self._std = (
            torch.tensor(network.pretrained_cfg[name], device=device).view(1, 3, 1, 1)
            for name in ("mean", "std")
        )

    @staticmethod
    @cache
    def architecture(model: str, shape: tuple[int, ...], classes: int, grid: tuple[int, int]) -> Architecture:
        """Return width, FLOPs and heads.

        Raises `UserError` for a model that timm does not have and for a network without a grid of tokens.
        """
        with user_errors():
            network = create(model, device="meta")
        # timm's architectures without a grid of tokens lack these two.
        if not hasattr(network, "num_prefix_tokens") or not hasattr(network, "set_input_size"):
            raise UserError(
                f"encoder 'timm:{model}' is not a ViT with tokens on a grid; choose a ViT, for example "
                "timm:vit_base_patch14_dinov2"
            )
        size = _pixels(network, grid)
        network.set_input_size(img_size=size)
        with torch.no_grad():
            tokens = network.forward_features(torch.empty(1, 3, *size, device="meta"))
        if tokens.ndim != 3 or tokens.shape[1] - network.num_prefix_tokens != grid[0] * grid[1]:
            raise UserError(
                f"encoder 'timm:{model}' cannot place its tokens on a grid of {grid[0]}x{grid[1]}; choose a "
                "plain ViT"
            )
        flops = count_flops(_Features(network), (3, *size))
        attention = _last_attention(network)
        return Architecture(network.num_features, flops, attention.num_heads if attention else 0)

    @staticmethod
    def check_weights(choice: EncoderChoice) -> None:
        """Raise `UserError` if neither `method.encoder.weights` nor the hub's copy is on this machine."""
        with user_errors():
            on_disk(choice, *hub_copy(parse_name(choice.name)[1]))

    @torch.no_grad()
    def view(self, images: Tensor, *, summary: bool = False, attention: int = 0) -> View:
        """Return tokens, summary and attention of images.

        Attention is over the patch tokens only: class token and registers are left out before the softmax.
        """
        x = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        x = ((x + 1) / 2 - self._mean) / self._std
        x = F.interpolate(x, size=self._size, mode="bicubic")
        network, prefix = self._network, self._network.num_prefix_tokens
        with _captured_attention(network, attention, self.name) as captured:
            tokens = network.forward_features(x).float()
        view = View(tokens[:, prefix:])
        if summary:
            # Only some of timm's architectures have a class token.
            has_class = getattr(network, "cls_token", None) is not None
            view = view._replace(summary=tokens[:, 0] if has_class else view.tokens.mean(dim=1))
        if attention:
            maps = [attention_of(q[:, :, prefix:], k[:, :, prefix:]) for q, k in captured]
            view = view._replace(attention=torch.stack(maps, dim=1))
        return view


def _last_attention(network: TimmNetwork) -> Attention | None:
    """Return the attention of the last block if it is timm's plain one, else None.

    A plain one does not rotate queries and keys after their norm.
    """
    # Not every architecture has blocks, nor every block attention.
    blocks = getattr(network, "blocks", None)
    attention = getattr(blocks[-1], "attn", None) if blocks else None
    return attention if type(attention) is Attention else None


@contextmanager
def _captured_attention(
    network: TimmNetwork, blocks: int, name: str
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yield a list that receives the queries and keys (B, heads, tokens, d) of the last blocks, in order.

    It is filled when the context ends.
    """
    if blocks and _last_attention(network) is None:
        raise no_attention(name)
    if blocks and blocks > len(network.blocks):
        raise no_attention(name, len(network.blocks))
    queries, keys, hooks = [], [], []
    for block in network.blocks[-blocks:] if blocks else ():
        for module, kept in ((block.attn.q_norm, queries), (block.attn.k_norm, keys)):
            hooks.append(module.register_forward_hook(lambda _, __, out, kept=kept: kept.append(out)))
    captured: list[tuple[Tensor, Tensor]] = []
    try:
        yield captured
        captured.extend(zip(queries, keys, strict=True))
    finally:
        for hook in hooks:
            hook.remove()


class _Features(nn.Module):
    """A module whose `forward` is the network's `forward_features`."""

    def __init__(self, network: TimmNetwork) -> None:
        super().__init__()
        self.network: TimmNetwork = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.forward_features(x)


def _pixels(network: TimmNetwork, grid: tuple[int, int]) -> tuple[int, int]:
    patch = network.patch_embed.patch_size
    return grid[0] * patch[0], grid[1] * patch[1]
