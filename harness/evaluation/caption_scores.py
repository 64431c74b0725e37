"""Metrics of pictures and captions in the joint space of a CLIP of open_clip, from local weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from harness.config.data_spec import TextSpec
from harness.data.dataset import Dataset
from harness.evaluation.extractors import open_extractor
from harness.text.base import open_text_encoder
from metrics import MetricError, Value
from metrics.domain.caption_scores import clip_score, clip_score_hessel, retrieval
from metrics.extractors.open_clip_recipe import config_of, find_recipe

FAMILY = "open_clip:"
PICTURES = 250
"""Pictures in one pass of the image tower."""
CONTEXT = 77
"""Tokens of a text tower whose settings do not state their number."""
_SCORES: dict[str, Callable[[np.ndarray, np.ndarray, list[str]], Value]] = {
    "clip_score": lambda pictures, captions, _: clip_score(pictures, captions),
    "clip_score_hessel": lambda pictures, captions, _: clip_score_hessel(pictures, captions),
    "retrieval": retrieval,
}


class CaptionScore:
    """One value over pictures and the captions that they were generated from.

    Raises `UserError` if the weights are not on this machine; both towers are read from one file.
    """

    def __init__(
        self,
        value: str,
        network: str,
        weights: Mapping[str, str],
        dataset: Dataset,
        train: np.ndarray,
        device: torch.device,
    ) -> None:
        self._score = _SCORES[value]
        self._images = open_extractor(network, weights, dataset, train, device)
        model = find_recipe(network.removeprefix(FAMILY)).model
        length = config_of(model)["text_cfg"].get("context_length", CONTEXT)
        file = weights.get(network, "")
        settings = TextSpec(encoder=network, length=length, pooled=True, weights=file)
        self._texts = open_text_encoder(settings, dataset, held_out=0.0, device=device)

    # Any: JSON.
    def about(self) -> dict[str, Any]:
        """Return what values depend on in addition to the samples, as JSON."""
        images, texts = self._images, self._texts
        return {"images": images.sha256, "preprocessing": images.preprocessing, "texts": texts.sha256}

    def __call__(self, pictures: np.ndarray, captions: Sequence[str]) -> Value:
        """Measure pictures uint8 (N, C, H, W) and their captions.

        Raises `MetricError` for an embedding that is zero or not finite, and for too few captions.
        """
        if pictures.ndim != 4:
            raise MetricError(f"expected pictures (N, C, H, W), but got shape {pictures.shape}")
        x = torch.from_numpy(np.ascontiguousarray(pictures))
        embedded = torch.cat([self._images(part).cpu() for part in x.split(PICTURES)]).numpy()
        # Equal captions are encoded once.
        names = list(dict.fromkeys(captions))
        texts = self._texts.encode(names).features[:, 0].numpy()
        row = {name: i for i, name in enumerate(names)}
        return self._score(embedded, texts[[row[name] for name in captions]], list(captions))
