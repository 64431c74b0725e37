"""Text towers of open_clip: CLIP and its relatives with the byte-pair tokenizer that open_clip contains.

Tokens are those after the final norm, before pooling and projection: CLIP's last hidden state. Towers whose
text network or tokenizer is another library's (SigLIP, RoBERTa) are refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.config.data_spec import TextSpec
from harness.data.dataset import Dataset
from harness.errors import UserError
from harness.text.base import (
    FrozenTextEncoder,
    Hidden,
    TextArchitecture,
    Tokens,
    check_layer,
    check_length,
    model_of,
    text_flops,
)
from metrics.extractors.open_clip_recipe import VISUAL, Recipe, config_of, find_recipe
from metrics.files.hashing import file_sha256
from metrics.files.hub import fill_part, weights_file
from metrics.files.weights import read_tensors
from metrics.value import MetricError

TEXT = "text."
"""Prefix of the names of the text tower's tensors in models that keep the two towers apart."""
NOT_OF_TEXT = (VISUAL, "logit_scale", "logit_bias", "text_decoder.")
EXAMPLE = "open_clip:ViT-L-14.openai"


class OpenClipText(FrozenTextEncoder):
    """The text tower of a CLIP of open_clip, for example open_clip:ViT-L-14.openai, REPA's."""

    def __init__(
        self, settings: TextSpec, dataset: Dataset, *, held_out: float, device: torch.device
    ) -> None:
        recipe = find_recipe(model_of(settings, EXAMPLE))
        super().__init__(settings, self.architecture(settings, dataset), device)
        file = _file(settings, recipe)
        tower = build(recipe)
        fill_part(tower, text_tensors(file), file, f"text encoder '{settings.encoder}'")
        self.sha256 = file_sha256(file)
        self.params = sum(p.numel() for p in tower.parameters())
        self._tokenizer = _tokenizer(recipe)
        # Any: the tower's attributes have no types.
        self._tower: Any = tower.to(device).requires_grad_(False).eval()

    @staticmethod
    def architecture(settings: TextSpec, dataset: Dataset) -> TextArchitecture:
        """Return width, length and FLOPs.

        Raises `UserError` for a model that open_clip does not have, and for a text tower of another library.
        """
        recipe = find_recipe(model_of(settings, EXAMPLE))
        with torch.device("meta"):
            # Any: the tower's attributes have no types.
            tower: Any = build(recipe).eval()
        check_layer(settings, len(tower.transformer.resblocks))
        check_length(settings, tower.context_length)
        flops = text_flops(tower, settings.length, lambda net, ids: hidden_state(net, ids, None))
        width = tower.token_embedding.weight.shape[1]
        if not settings.pooled:
            return TextArchitecture(width, settings.length, flops)
        return TextArchitecture(config_of(recipe.model)["embed_dim"], 1, flops)

    @classmethod
    def check_weights(cls, settings: TextSpec) -> None:
        """Raise `UserError` if neither `text.weights` nor the hub's copy is on this machine."""
        _file(settings, find_recipe(model_of(settings, EXAMPLE)))

    def tokens(self, captions: Sequence[str]) -> Tokens:
        ids = self._tokenizer(list(captions), context_length=self.settings.length)
        real = self.token_counts(captions).clip(max=self.settings.length)
        return Tokens(ids, torch.arange(self.settings.length) < torch.from_numpy(real)[:, None])

    def token_counts(self, captions: Sequence[str]) -> np.ndarray:
        return np.array([len(self._tokenizer.encode(text)) + 2 for text in captions], dtype=np.int64)

    def hidden(self, tokens: Tokens) -> Hidden:
        found = hidden_state(self._tower, tokens.ids, self.settings.layer)
        return Hidden(found, pooled(self._tower, found, tokens.ids) if self.settings.pooled else found[:, 0])


# Any: the tower's attributes have no types.
def hidden_state(tower: Any, ids: Tensor, layer: int | None) -> Tensor:
    """Return the tokens (n, L, D) after the final norm, or the output of a block (1-based)."""
    x, mask = tower._embeds(ids)
    if mask is not None:
        # The tower's mask is made for its full context.
        mask = mask[..., : ids.shape[1], : ids.shape[1]]
    if layer is None:
        return tower.ln_final(tower.transformer(x, attn_mask=mask))
    return tower.transformer.forward_intermediates(x, attn_mask=mask, indices=[layer - 1])[1][0]


# Any: the tower's attributes have no types.
def pooled(tower: Any, tokens: Tensor, ids: Tensor) -> Tensor:
    """Return the joint image-text embedding (n, D') of tokens after the final norm, as the tower does."""
    from open_clip.transformer import text_global_pool

    found = text_global_pool(
        tokens, ids, pool_type=tower.pool_type, eos_token_id=getattr(tower, "eos_id", None)
    )
    if tower.text_projection is None:
        return found
    projects = isinstance(tower.text_projection, nn.Linear)
    return tower.text_projection(found) if projects else found @ tower.text_projection


def build(recipe: Recipe) -> nn.Module:
    """Return a model's text tower with initial weights.

    Raises `UserError` for one that open_clip takes from another library.
    """
    from open_clip.model import _build_text_tower

    config = config_of(recipe.model)
    text = dict(config["text_cfg"])
    foreign = text.get("hf_model_name") or text.get("hf_tokenizer_name")
    if foreign or text.get("embed_cls") or config.get("multimodal_cfg") or "siglip" in recipe.model.lower():
        raise UserError(
            f"text encoder 'open_clip:{recipe.model}' has a text tower or tokenizer that open_clip does not "
            f"contain; choose a CLIP, for example {EXAMPLE}, or transformers:FOLDER"
        )
    # A file will replace the initial weights, so torch's generator is not advanced.
    with torch.random.fork_rng(devices=[]):
        # Any: open_clip itself converts a dictionary to its CLIPTextCfg.
        settings: Any = text
        return _build_text_tower(config["embed_dim"], settings, quick_gelu=recipe.quick_gelu)


def text_tensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of the text tower of a file in open_clip's layout.

    Raises `MetricError` for a file without any.
    """
    tensors = read_tensors(file, TEXT)
    if tensors:
        return {name.removeprefix(TEXT): tensor for name, tensor in tensors.items()}
    tensors = {name: x for name, x in read_tensors(file).items() if not name.startswith(NOT_OF_TEXT)}
    if "token_embedding.weight" not in tensors:
        raise MetricError(f"{file} holds no text tower of open_clip: it has no tensor token_embedding.weight")
    return tensors


def _file(settings: TextSpec, recipe: Recipe) -> Path:
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME

    if settings.weights and not Path(settings.weights).expanduser().is_file():
        raise UserError(f"text.weights = {settings.weights}: no such file")
    return weights_file(
        f"text encoder '{settings.encoder}'",
        settings.weights,
        recipe.repository,
        HF_SAFE_WEIGHTS_NAME,
        download=settings.download,
        setting="text.weights",
        consent="set text.download=true",
    )


# Any: open_clip declares no type for its tokenizers.
def _tokenizer(recipe: Recipe) -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(**config_of(recipe.model)["text_cfg"].get("tokenizer_kwargs", {}))
