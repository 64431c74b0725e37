"""Features of captions that are stored with the data, as in U-ViT's folder of COCO: no encoder is run.

Their padding is attended to, because it is part of the features, as in U-ViT and REPA's text-to-image code.
The null condition is the stored empty caption. Prompts need an encoder, so samples of them cannot be drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from harness.backbone.condition import CLIP_L, Text
from harness.config.spec import TextSpec
from harness.data.dataset import Capabilities, Dataset
from harness.errors import UserError
from harness.text.base import TextArchitecture
from harness.text.captions import EMPTY, RunCaptions

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


class StoredCaptions(RunCaptions):
    """The captions of a data set by their stored features; their texts are not known."""

    def __init__(self, encoder: StoredText, dataset: Dataset) -> None:
        self.encoder, self.dataset, self._states = encoder, dataset, encoder.states
        self.empty = encoder.encode([EMPTY])

    def of_samples(self, index: int) -> tuple[str, ...]:
        """Return names of the captions of a sample, in place of their texts."""
        return tuple(f"caption {k} of sample {index}" for k in range(self._states.counts[index])) or (EMPTY,)

    def chosen(self, place: np.ndarray, draw: Tensor) -> Text:
        counts = self._states.counts[place]
        return self._read(place, [int(u * n) for u, n in zip(draw.tolist(), counts.tolist(), strict=True)])

    def first(self, place: np.ndarray) -> Text:
        return self._read(place, [0] * len(place))

    def with_captions(self, place: np.ndarray) -> np.ndarray:
        return place[self._states.counts[place] > 0].astype(np.int64)

    def about(self) -> dict[str, object]:
        captions = int(self._states.counts.sum())
        return {
            "name": NAME, "sha256": self.encoder.sha256, "params": 0, "flops": 0, "one_off_flops": 0,
            "captions": captions, "distinct": captions + 1, "cut": 0,
        }  # fmt: skip

    def _read(self, place: np.ndarray, captions: Sequence[int]) -> Text:
        """Return the features of one caption of each sample; of the empty one for a sample without."""
        states = [
            self._states.states(int(i), k) if self._states.counts[i] else self.empty.features[0].numpy()
            for i, k in zip(place, captions, strict=True)
        ]
        return Text(torch.from_numpy(np.stack(states)))


def _no_states() -> UserError:
    return UserError(
        f"text.encoder = {NAME} needs stored features of captions, which these data do not have; import "
        "U-ViT's feature folder with flowrace data import, or choose another encoder"
    )
