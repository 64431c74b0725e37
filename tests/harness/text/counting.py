"""A text encoder for tests: its features are hashes of the captions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from harness.backbone.condition import Text


class Counting:
    """A text encoder whose features are a hash of the caption, and which counts its work."""

    name, dim, length, longest, params, flops, sha256 = "counting", 3, 4, 4, 0, 0, "ab" * 32

    def __init__(self, *, masked: bool = True) -> None:
        self.encoded, self.masked = 0, masked

    def token_counts(self, captions: Sequence[str]) -> np.ndarray:
        return np.array([len(caption.split()) + 1 for caption in captions])

    def encode(self, captions: Sequence[str]) -> Text:
        self.encoded += sum(bool(caption) for caption in captions)
        seeds = [int.from_bytes(hashlib.sha256(c.encode()).digest()[:2], "big") for c in captions]
        ramp = torch.arange(self.length * self.dim).reshape(self.length, self.dim)
        features = torch.tensor(seeds, dtype=torch.float32)[:, None, None] + ramp
        counts = torch.from_numpy(self.token_counts(captions)).clamp(max=self.length)
        mask = torch.arange(self.length) < counts[:, None]
        return Text(features * mask[..., None], mask) if self.masked else Text(features)
