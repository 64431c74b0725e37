"""Image towers of open_clip, frozen: CLIP, SigLIP and their kin, with their tokens on a grid.

Images are prepared as REPA prepares them for CLIP (REPA utils.py `preprocess_raw_image` at 67f7145): a bicubic resize that gives
the backbone's grid, then the mean and deviation the tower was trained with. Tokens are those behind the final norm, without
class token (REPA reads CLIP-L before it and drops the last block; here all families end alike).
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import open_clip
import torch
import torch.nn.functional as F
from open_clip.constants import HF_SAFE_WEIGHTS_NAME
from open_clip.model import _build_vision_tower, resize_pos_embed  # a whole CLIP has a text tower too
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from harness.data.dataset import Dataset
from harness.encoders import weights
from harness.encoders.base import Architecture, EncoderChoice, Viewer, count_flops, no_attention, parse_name
from harness.errors import UserError
from harness.flow.batch import View
from metrics.extractors.open_clip_recipe import VISUAL, Recipe, config_of, find_recipe
from metrics.files.hashing import sha256_of
from metrics.value import MetricError


class OpenClipEncoder(Viewer):
    """Any CLIP or SigLIP of open_clip, as open_clip:ViT-B-16.openai; weights from a file, or from the hub when asked."""

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
        recipe = recipe_of(model)
        file = weights_file(choice, recipe)
        self.sha256 = sha256_of(file)
        with torch.random.fork_rng(devices=[]):  # open_clip draws initial weights that the file replaces
            tower = build(recipe, grid)
        load_weights(tower, file)
        network = tokens_of(tower, recipe.model, grid)
        self.params = sum(p.numel() for p in network.parameters())
        self._size = network.size
        self._network = network.to(device).requires_grad_(False).eval()
        self._mean, self._std = (
            torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (recipe.mean, recipe.std)
        )

    @staticmethod
    def architecture(
        model: str, shape: tuple[int, int, int], classes: int, grid: tuple[int, int]
    ) -> Architecture:
        """Width and cost; raises `UserError` for a name that open_clip does not have and for a tower without a grid of
        tokens."""
        recipe = recipe_of(model)
        with torch.device("meta"):
            network = tokens_of(build(recipe, grid), recipe.model, grid).eval()
        with torch.no_grad():
            tokens = network(torch.empty(1, 3, *network.size, device="meta"))
        if tokens.shape[1:-1] != (grid[0] * grid[1],):
            raise _no_vit(recipe.model)
        return Architecture(tokens.shape[-1], count_flops(network, (3, *network.size)))

    @torch.no_grad()
    def view(self, images: Tensor, *, summary: bool = False, attention: int = 0) -> View:
        """The summary is the mean of the tokens."""
        if attention:
            raise no_attention(self.name)
        x = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        x = F.interpolate((x + 1) / 2, size=self._size, mode="bicubic")
        tokens = self._network((x - self._mean) / self._std).float()
        return View(tokens, tokens.mean(dim=1) if summary else None)


def recipe_of(model: str) -> Recipe:
    """The recipe of `model` or `model.weights`; raises `UserError` for unknown names and for weights that have to be named."""
    try:
        return find_recipe(model)
    except MetricError as error:
        raise UserError(str(error)) from error


def build(recipe: Recipe, grid: tuple[int, int]) -> nn.Module:
    """open_clip's image tower with initial weights, its position embedding on the grid where the tower is open_clip's own."""
    config = config_of(recipe.model)
    vision = {**config["vision_cfg"], "patch_dropout": 0.0}
    if vision.get("attentional_pool") or not isinstance(vision.get("layers", 12), int):
        raise _no_vit(recipe.model)
    if not vision.get("timm_model_name"):
        patch = vision.get("patch_size", 16)
        vision["image_size"] = (grid[0] * patch, grid[1] * patch)
    return _build_vision_tower(config["embed_dim"], vision, quick_gelu=recipe.quick_gelu)


def tokens_of(tower: nn.Module, model: str, grid: tuple[int, int]) -> ClipTokens | TimmTokens:
    """A tower as a network from prepared images to patch tokens; raises `UserError` for one that is no plain ViT."""
    if isinstance(tower, VisionTransformer):
        return ClipTokens(tower)
    trunk = tower.trunk
    convolves = hasattr(getattr(trunk, "patch_embed", None), "backbone")
    if convolves or not hasattr(trunk, "num_prefix_tokens") or not hasattr(trunk, "set_input_size"):
        raise _no_vit(model)
    return TimmTokens(trunk, grid)


class ClipTokens(nn.Module):
    """open_clip's own tower up to the final norm, without pooling and projection."""

    def __init__(self, tower: VisionTransformer) -> None:
        super().__init__()
        self.size = tower.image_size
        tower.proj = None
        self.tower = tower

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, *size) -> (B, T, width)."""
        return self.tower.ln_post(self.tower.transformer(self.tower._embeds(x)))[:, 1:]


class TimmTokens(nn.Module):
    """A tower that open_clip takes from timm (SigLIP, EVA), up to the final norm."""

    def __init__(self, trunk: nn.Module, grid: tuple[int, int]) -> None:
        super().__init__()
        patch = trunk.patch_embed.patch_size
        self.size = (grid[0] * patch[0], grid[1] * patch[1])
        trunk.set_input_size(img_size=self.size)
        trunk.reset_classifier(0, "")
        self.trunk = trunk

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, *size) -> (B, T, width)."""
        return self.trunk.forward_features(x)[:, self.trunk.num_prefix_tokens :]


def weights_file(choice: EncoderChoice, recipe: Recipe) -> Path:
    """Where a recipe's weights lie."""
    tags = ", ".join(open_clip.list_pretrained_tags_by_model(recipe.model)) or "it has none"
    without = (
        "names no weights on the hub; give a safetensors file in method.encoder.weights, or "
        f"one of open_clip:{recipe.model}.<weights> ({tags})"
    )
    return weights.on_disk(choice, recipe.repository, HF_SAFE_WEIGHTS_NAME, without=without)


def load_weights(tower: nn.Module, file: Path) -> None:
    """Fill an image tower from a safetensors file in open_clip's layout, text tower and all.

    The position embedding is resampled to the tower's grid as open_clip does. Raises `UserError` for another kind of file
    and for weights of another network.
    """
    tensors = weights.read(file, VISUAL)
    if not tensors:
        raise UserError(f"{file} holds no image tower of open_clip: none of its tensors is called {VISUAL}*")
    with weights.fitting(file):
        resize_pos_embed(tensors, SimpleNamespace(visual=tower))
        tower.load_state_dict({name.removeprefix(VISUAL): t for name, t in tensors.items()})


def _no_vit(model: str) -> UserError:
    return UserError(
        f"encoder 'open_clip:{model}' is no ViT with patch tokens on a grid; choose a plain one, as open_clip:ViT-B-16.openai"
    )
