"""Vision transformers of timm, frozen: DINOv2, DINOv3, CLIP, MAE, SigLIP and every other with its tokens on a grid.

Images are prepared as REPA prepares them for DINOv2 (REPA utils.py, train.py at 67f7145): the model's mean and deviation, then
a bicubic resize that gives the backbone's grid (16x16 tokens of patch 14: 224 pixels), the position embedding resampled.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor, nn

from harness.data.dataset import Dataset
from harness.encoders import weights
from harness.encoders.base import (
    Architecture,
    EncoderChoice,
    Viewer,
    attention_of,
    count_flops,
    no_attention,
    parse_name,
)
from harness.errors import UserError
from harness.flow.batch import View
from metrics.files.hashing import sha256_of

UNUSED = ("head.", "fc.", "fc_norm.", "attn_pool.", "mask_token")
"""What a file may hold beside the network: its classifier, its pooling, what only its pretraining needed."""


class TimmEncoder(Viewer):
    """Any ViT of timm by name; weights from a safetensors file, or from the hub when `download` is set."""

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
        file = weights_file(choice, model)
        self.sha256 = sha256_of(file)
        with torch.random.fork_rng(devices=[]):  # timm draws initial weights that the file replaces
            network = timm.create_model(model, pretrained=False, num_classes=0)
        load_weights(network, file)
        self._size = _pixels(network, grid)
        network.set_input_size(img_size=self._size)
        self.params = sum(p.numel() for p in network.parameters())
        self._network = network.to(device).requires_grad_(False).eval()
        self._mean, self._std = (
            torch.tensor(network.pretrained_cfg[name], device=device).view(1, 3, 1, 1)
            for name in ("mean", "std")
        )

    @staticmethod
    def architecture(
        model: str, shape: tuple[int, int, int], classes: int, grid: tuple[int, int]
    ) -> Architecture:
        """Width and cost; raises `UserError` for a name that timm does not have and for a network without a grid of tokens."""
        network = _shadow(model)
        if not hasattr(network, "num_prefix_tokens") or not hasattr(network, "set_input_size"):
            raise UserError(
                f"encoder 'timm:{model}' is no ViT with tokens on a grid; choose a ViT, as vit_base_patch14_dinov2"
            )
        size = _pixels(network, grid)
        network.set_input_size(img_size=size)
        with torch.no_grad():
            tokens = network.forward_features(torch.empty(1, 3, *size, device="meta"))
        if tokens.ndim != 3 or tokens.shape[1] - network.num_prefix_tokens != grid[0] * grid[1]:
            raise UserError(
                f"encoder 'timm:{model}' cannot put its tokens on a grid of {grid[0]}x{grid[1]}; choose a plain ViT"
            )
        flops = count_flops(_Features(network), (3, *size))
        return Architecture(network.num_features, flops, getattr(_last_attention(network), "num_heads", 0))

    @torch.no_grad()
    def view(self, images: Tensor, *, summary: bool = False, attention: int = 0) -> View:
        """Attention is among the patch tokens alone: class token and registers are left out before the softmax."""
        x = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        x = ((x + 1) / 2 - self._mean) / self._std
        x = F.interpolate(x, size=self._size, mode="bicubic")
        network, prefix = self._network, self._network.num_prefix_tokens
        with _listening(network, attention, self.name) as heard:
            tokens = network.forward_features(x).float()
        view = View(tokens[:, prefix:])
        if summary:
            has_class = getattr(network, "cls_token", None) is not None
            view = view._replace(summary=tokens[:, 0] if has_class else view.tokens.mean(dim=1))
        if attention:
            maps = [attention_of(q[:, :, prefix:], k[:, :, prefix:]) for q, k in heard]
            view = view._replace(attention=torch.stack(maps, dim=1))
        return view


def _last_attention(network: nn.Module) -> Attention | None:
    """The attention of the last block, where it is timm's plain one (no rotation of queries and keys behind their norm)."""
    blocks = getattr(network, "blocks", ())
    attention = getattr(blocks[-1], "attn", None) if len(blocks) else None
    return attention if type(attention) is Attention else None


@contextmanager
def _listening(network: nn.Module, blocks: int, name: str) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Queries and keys (B, heads, tokens, d) of the last blocks while inside, in the order of the blocks."""
    if blocks and _last_attention(network) is None:
        raise no_attention(name)
    if blocks and blocks > len(network.blocks):
        raise no_attention(name, len(network.blocks))
    queries, keys, hooks = [], [], []
    for block in network.blocks[-blocks:] if blocks else ():
        for module, kept in ((block.attn.q_norm, queries), (block.attn.k_norm, keys)):
            hooks.append(module.register_forward_hook(lambda _, __, out, kept=kept: kept.append(out)))
    heard: list[tuple[Tensor, Tensor]] = []
    try:
        yield heard
        heard.extend(zip(queries, keys, strict=True))
    finally:
        for hook in hooks:
            hook.remove()


class _Features(nn.Module):
    """`forward_features` as a module's call."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.forward_features(x)


def weights_file(choice: EncoderChoice, model: str) -> Path:
    """Where a model's weights lie."""
    config = timm.get_pretrained_cfg(model)
    repository, name = getattr(config, "hf_hub_id", None), getattr(config, "hf_hub_filename", None)
    without = "has no weights on the hub; give a safetensors file in method.encoder.weights"
    return weights.on_disk(choice, repository, name or "model.safetensors", without=without)


def load_weights(network: nn.Module, file: Path) -> None:
    """Fill a timm network from a safetensors file, in timm's layout or one that timm converts.

    Raises `UserError` for another kind of file and for weights of another network.
    """
    tensors = weights.read(file)
    room = sys.modules[type(network).__module__]
    convert = getattr(room, "checkpoint_filter_fn", lambda tensors, _: tensors)
    with weights.fitting(file):
        result = network.load_state_dict(convert(tensors, network), strict=False)
    surplus = [name for name in result.unexpected_keys if not name.startswith(UNUSED)]
    for what, names in (("lacks", result.missing_keys), ("has beside it", surplus)):
        if names:
            raise UserError(
                f"{file} holds weights of another network: it {what} {names[0]} and {len(names) - 1} more"
            )


def _shadow(model: str) -> nn.Module:
    """The network without weights."""
    if not timm.is_model(model):
        near = difflib.get_close_matches(model, timm.list_models(), n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise UserError(f"timm has no model '{model}'.{hint} See: timm.list_models()")
    try:
        with torch.device("meta"):
            return timm.create_model(model, pretrained=False, num_classes=0)
    except RuntimeError as error:  # a tag that this architecture does not have
        raise UserError(f"encoder 'timm:{model}': {error}") from error


def _pixels(network: nn.Module, grid: tuple[int, int]) -> tuple[int, int]:
    patch = network.patch_embed.patch_size
    return grid[0] * patch[0], grid[1] * patch[1]
