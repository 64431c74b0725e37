"""Frozen image towers of open_clip with tokens on a grid: CLIP, SigLIP and related models.

Images are prepared as REPA prepares them for CLIP (REPA utils.py `preprocess_raw_image` at 67f7145). They are
resized (bicubic) so that the tokens fill the backbone's grid, then normalised with the mean and deviation of
the tower's training. For all families the tokens are those after the final norm, without the class token.
(REPA reads CLIP-L before that norm and drops the last block.)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from open_clip.constants import HF_SAFE_WEIGHTS_NAME
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from harness.data.dataset import Dataset
from harness.encoders.base import Architecture, EncoderChoice, Viewer, count_flops, no_attention, parse_name
from harness.encoders.weights import on_disk, user_errors
from harness.errors import UserError
from harness.flow.batch import View
from metrics.extractors.open_clip import Tower, create, fill
from metrics.extractors.open_clip_recipe import Recipe, config_of, find_recipe
from metrics.extractors.timm import TimmNetwork
from metrics.files.hashing import file_sha256


class OpenClipEncoder(Viewer):
    """Any CLIP or SigLIP of open_clip, for example open_clip:ViT-B-16.openai.

    Weights come from a file, or from the hub if `download` is set.
    """

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
            recipe = find_recipe(model)
            file = on_disk(choice, recipe.repository, HF_SAFE_WEIGHTS_NAME)
            self.sha256 = file_sha256(file)
            tower = build(recipe, grid)
            fill(tower, file, f"encoder '{choice.name}'", resample=True)
        network = tokens_of(tower, recipe.model, grid)
        self.params = sum(p.numel() for p in network.parameters())
        self._size = network.size
        self._network = network.to(device).requires_grad_(False).eval()
        self._mean, self._std = (
            torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (recipe.mean, recipe.std)
        )

    @staticmethod
    def architecture(model: str, shape: tuple[int, ...], classes: int, grid: tuple[int, int]) -> Architecture:
        """Return width and FLOPs.

        Raises `UserError` for a model that open_clip does not have and for a tower without a grid of tokens.
        """
        with user_errors():
            recipe = find_recipe(model)
        with torch.device("meta"):
            network = tokens_of(build(recipe, grid), recipe.model, grid).eval()
        with torch.no_grad():
            tokens = network(torch.empty(1, 3, *network.size, device="meta"))
        if tokens.shape[1:-1] != (grid[0] * grid[1],):
            raise _no_vit(recipe.model)
        return Architecture(tokens.shape[-1], count_flops(network, (3, *network.size)))

    @staticmethod
    def check_weights(choice: EncoderChoice) -> None:
        """Raise `UserError` if neither `method.encoder.weights` nor the hub's copy is on this machine."""
        with user_errors():
            on_disk(choice, find_recipe(parse_name(choice.name)[1]).repository, HF_SAFE_WEIGHTS_NAME)

    @torch.no_grad()
    def view(self, images: Tensor, *, summary: bool = False, attention: int = 0) -> View:
        """Return tokens of images and, if requested, the mean of the tokens as summary."""
        if attention:
            raise no_attention(self.name)
        x = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        x = F.interpolate((x + 1) / 2, size=self._size, mode="bicubic")
        tokens = self._network((x - self._mean) / self._std).float()
        return View(tokens, tokens.mean(dim=1) if summary else None)


def build(recipe: Recipe, grid: tuple[int, int]) -> Tower:
    """Return an image tower with initial weights.

    open_clip's own towers get a position embedding for the grid; those from timm resample theirs later.
    """
    vision = {**config_of(recipe.model)["vision_cfg"], "patch_dropout": 0.0}
    if vision.get("attentional_pool") or not isinstance(vision.get("layers", 12), int):
        raise _no_vit(recipe.model)
    if not vision.get("timm_model_name"):
        patch = vision.get("patch_size", 16)
        vision["image_size"] = (grid[0] * patch, grid[1] * patch)
    return create(recipe, vision)


def tokens_of(tower: Tower, model: str, grid: tuple[int, int]) -> ClipTokens | TimmTokens:
    """Return a tower as a network from prepared images to patch tokens.

    Raises `UserError` for a tower that is not a plain ViT.
    """
    if isinstance(tower, VisionTransformer):
        return ClipTokens(tower)
    trunk = tower.trunk
    # timm's architectures differ in these: a convolutional stem, or no tokens on a grid.
    convolves = hasattr(getattr(trunk, "patch_embed", None), "backbone")
    if convolves or not hasattr(trunk, "num_prefix_tokens") or not hasattr(trunk, "set_input_size"):
        raise _no_vit(model)
    return TimmTokens(trunk, grid)


class ClipTokens(nn.Module):
    """open_clip's own tower up to the final norm, without pooling and projection."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.size: tuple[int, int] = tower.image_size
        tower.proj = None
        self.tower: Tower = tower

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, *size) to (B, T, width)."""
        return self.tower.ln_post(self.tower.transformer(self.tower._embeds(x)))[:, 1:]


class TimmTokens(nn.Module):
    """A timm tower of open_clip (SigLIP, EVA), up to the final norm."""

    def __init__(self, trunk: TimmNetwork, grid: tuple[int, int]) -> None:
        super().__init__()
        patch = trunk.patch_embed.patch_size
        self.size: tuple[int, int] = (grid[0] * patch[0], grid[1] * patch[1])
        trunk.set_input_size(img_size=self.size)
        trunk.reset_classifier(0, "")
        self.trunk: TimmNetwork = trunk

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, *size) to (B, T, width)."""
        return self.trunk.forward_features(x)[:, self.trunk.num_prefix_tokens :]


def _no_vit(model: str) -> UserError:
    return UserError(
        f"encoder 'open_clip:{model}' is not a ViT with patch tokens on a grid; choose a plain one, for "
        "example open_clip:ViT-B-16.openai"
    )
