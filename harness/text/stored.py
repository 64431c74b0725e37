"""Features of captions that are stored with the data, as in U-ViT's folder of COCO: no encoder is run.

Their padding is attended to, because it is part of the features, as in U-ViT and REPA's text-to-image code.
The null condition is the stored empty caption. Prompts need an encoder, so samples of them cannot be drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from harness.backbone.condition import CLIP_L, Text
from harness.config.data_spec import TextSpec
from harness.data.dataset import Capabilities, Dataset
from harness.errors import UserError
from harness.text.base import TextArchitecture

NAME = "stored"


class StoredText:
    """The features that are stored with the captions of a data set; there are no weights."""

    name = NAME
    params = flops = 0

    def __init__(
        self, settings: TextSpec, dataset: Dataset, *, held_out: float, device: torch.device
    ) -> None:
        found = Capabilities(dataset).caption_states
        if found is None:
            raise _no_states()
        self.dim, self.length, _ = self.architecture(settings, dataset)
        self.states, self.longest, self.sha256 = found, self.length, found.sha256

    @staticmethod
    def architecture(settings: TextSpec, dataset: Dataset) -> TextArchitecture:
        """Return width and length of the stored states; without data, those of CLIP ViT-L/14."""
        if settings.encoder != NAME:
            raise UserError(
                f"text.encoder = {settings.encoder}, but stored features have no choice of a model; set "
                f"text.encoder={NAME}"
            )
        for name in ("layer", "pooled", "weights", "sha256", "content", "download"):
            if (value := getattr(settings, name)) != TextSpec.model_fields[name].default:
                raise UserError(
                    f"text.{name} = {value}, but text.encoder = {NAME} runs no network; leave it out"
                )
        if settings.padding != "attended":
            raise UserError(
                f"text.encoder = {NAME} has features of padding, and no mask of real tokens; set "
                "text.padding=attended"
            )
        found = Capabilities(dataset).caption_states
        length, dim = (CLIP_L.length, CLIP_L.dim) if found is None else (found.length, found.dim)
        if settings.length != length:
            raise UserError(
                f"text.length = {settings.length}, but the stored states have {length} tokens; set "
                f"text.length={length}"
            )
        return TextArchitecture(dim, length, 0)

    def token_counts(self, captions: Sequence[str]) -> np.ndarray:
        return np.full(len(captions), self.length)

    def encode(self, captions: Sequence[str]) -> Text:
        """Return the features of the empty caption, which alone is known by its text."""
        for caption in filter(None, captions):
            raise UserError(
                f"text.encoder = {NAME} has features of the data's captions only, so {caption[:40]!r} cannot "
                "be encoded; leave out --prompt to draw samples of held-out captions"
            )
        return Text(torch.from_numpy(self.states.empty())[None]).expand(len(captions))


def _no_states() -> UserError:
    return UserError(
        f"text.encoder = {NAME} needs stored features of captions, which these data do not have; set "
        "data.root to U-ViT's feature folder, or choose another encoder"
    )
