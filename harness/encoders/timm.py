"""Vision transformers of timm, frozen: DINOv2, DINOv3, CLIP, MAE, SigLIP and every other with its tokens on a grid.

Images are prepared as REPA prepares them for DINOv2 (REPA utils.py, train.py at 67f7145): the model's mean and deviation, then
a bicubic resize that gives the backbone's grid (16x16 tokens of patch 14: 224 pixels), the position embedding resampled.
"""

from __future__ import annotations

import difflib
import sys
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.data.base import Dataset
from harness.encoders import weights
from harness.encoders.base import Architecture, EncoderChoice, count_flops, parse_name
from harness.errors import UserError

UNUSED = ("head.", "fc.", "fc_norm.", "attn_pool.", "mask_token")
"""What a file may hold beside the network: its classifier, its pooling, what only its pretraining needed."""


class TimmEncoder:
    """Any ViT of timm by name; weights from a safetensors file, or from the hub when `download` is set."""

    accuracy: float | None = None

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
        self.name, self.grid, self.dim, self.flops = choice.name, grid, about.dim, about.flops
        file = weights_file(choice, model)
        self.sha256 = weights.sha256(file)
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
        return Architecture(network.num_features, count_flops(_Features(network), (3, *size)))

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        x = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        x = ((x + 1) / 2 - self._mean) / self._std
        x = F.interpolate(x, size=self._size, mode="bicubic")
        return self._network.forward_features(x)[:, self._network.num_prefix_tokens :].float()


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
