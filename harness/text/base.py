"""Frozen text encoders: their protocol, and opening one by name.

An encoder maps captions to `Text` (harness/backbone/condition.py): one vector for each token, or one pooled
vector for each caption. Features of padding are zero if padding is masked.

    n  captions    L  tokens    D  width
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from harness.backbone.condition import Text
from harness.config import registry
from harness.config.data_spec import TextSpec
from harness.data.dataset import Dataset
from harness.encoders.weights import user_errors
from harness.errors import UserError

BLOCK = 64
"""Captions in one pass of an encoder."""


class TextArchitecture(NamedTuple):
    """Properties of a text encoder that need no weights."""

    dim: int
    """Width D of a token."""
    length: int
    """Number of tokens L that a network is given: 1 for pooled features."""
    flops: int
    """FLOPs of one caption's forward pass."""


class TextEncoder(Protocol):
    """A frozen text encoder, constructed as `cls(settings, dataset, held_out=..., device=...)`.

    A class also has `architecture(settings, dataset)`, which needs no weights, and may have
    `check_weights(settings)`, which raises `UserError` if the weights are not on this machine. Both read the
    settings of a spec's section `text`. `dataset` has captions; only local encoders read them.
    """

    name: str
    dim: int
    length: int
    """Number of tokens L of the features."""
    longest: int
    """Number of tokens after which a caption is cut."""
    params: int
    flops: int
    """FLOPs of one caption's forward pass."""
    sha256: str
    """SHA-256 of the weights and of what else decides the features, 64 hex digits."""

    def token_counts(self, captions: Sequence[str]) -> np.ndarray:
        """Return the number of tokens of each caption before it is cut, int64 (n,)."""
        ...

    def encode(self, captions: Sequence[str]) -> Text:
        """Return the features of captions, float32 (n, L, D) on the CPU."""
        ...


@dataclass(frozen=True)
class Tokens:
    """Captions as token numbers."""

    ids: Tensor
    """(n, L) int64, padded."""
    mask: Tensor
    """(n, L) bool, true for real tokens."""


class Hidden(NamedTuple):
    """Outputs of an encoder's network."""

    tokens: Tensor
    """(n, L, D) the last hidden state, or the output of the chosen block."""
    pooled: Tensor
    """(n, D') one vector per caption."""


class FrozenTextEncoder(ABC):
    """Base class of text encoders, which implement `tokens`, `token_counts` and `hidden`."""

    name: str
    dim: int
    length: int
    longest: int
    params: int
    flops: int
    sha256: str

    def __init__(self, settings: TextSpec, about: TextArchitecture, device: torch.device) -> None:
        self.name, self.settings, self.device = settings.encoder, settings, device
        self.dim, self.length, self.flops = about
        self.longest = settings.length

    # An encoder may have no weights.
    @classmethod  # noqa: B027
    def check_weights(cls, settings: TextSpec) -> None:
        """Raise `UserError` if the weights are not on this machine."""

    @abstractmethod
    def tokens(self, captions: Sequence[str]) -> Tokens:
        """Return captions as tokens, cut and padded to `settings.length`."""

    @abstractmethod
    def token_counts(self, captions: Sequence[str]) -> np.ndarray: ...

    @abstractmethod
    def hidden(self, tokens: Tokens) -> Hidden:
        """Return the network's outputs for tokens on the encoder's device."""

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> Text:
        """Return the features of captions, float32 (n, L, D) on the CPU."""
        return joined([self._block(captions[i : i + BLOCK]) for i in range(0, len(captions), BLOCK)])

    def _block(self, captions: Sequence[str]) -> Text:
        """Return the features of at most `BLOCK` captions from a pass of exactly `BLOCK`."""
        texts = padded(captions)
        tokens = self.tokens(texts)
        if self.settings.pooled or self.settings.padding != "attended":
            self._check_tokens(texts, tokens.mask)
        moved = Tokens(tokens.ids.to(self.device), tokens.mask.to(self.device))
        # Features do not depend on the precision of training, because they are computed once for many runs.
        with torch.autocast(self.device.type, enabled=False):
            hidden = self.hidden(moved)
        if self.settings.pooled:
            return Text(hidden.pooled.float().cpu()[:, None])[: len(captions)]
        features = hidden.tokens.float().cpu()
        if self.settings.padding == "attended":
            return Text(features)[: len(captions)]
        return Text(features * tokens.mask[..., None], tokens.mask)[: len(captions)]

    def _check_tokens(self, captions: Sequence[str], mask: Tensor) -> None:
        """Raise `UserError` for a caption without a real token, for example the empty one."""
        for row in (~mask.any(dim=1)).nonzero().flatten().tolist()[:1]:
            raise UserError(
                f"text encoder '{self.name}' has no token for the caption {captions[row][:40]!r}; choose one "
                "whose tokenizer adds special tokens"
            )


def padded(captions: Sequence[str]) -> list[str]:
    """Return at most `BLOCK` captions, followed by empty ones up to exactly `BLOCK`.

    All passes have one shape, because the last bits of a matrix product depend on its shape.
    """
    return [*captions, *[""] * (BLOCK - len(captions))]


def joined(texts: Sequence[Text]) -> Text:
    """Return the texts of all, one after the other."""
    masks = [text.mask for text in texts if text.mask is not None]
    return Text(torch.cat([text.features for text in texts]), torch.cat(masks) if masks else None)


def open_text_encoder(
    settings: TextSpec, dataset: Dataset, *, held_out: float, device: torch.device
) -> TextEncoder:
    """Return the text encoder of a spec.

    A local one is trained first, without the captions of the `held_out` fraction of the data. Raises
    `UserError` for an unknown name, and for weights that are missing, damaged or do not match `sha256`.
    """
    with user_errors():
        encoder: TextEncoder = _family(settings)(settings, dataset, held_out=held_out, device=device)
    if settings.sha256 and settings.sha256.lower() != encoder.sha256:
        raise UserError(
            f"text encoder '{settings.encoder}' has weights of sha256 {encoder.sha256}, but text.sha256 is "
            f"{settings.sha256}; set text.weights to the matching file, or clear text.sha256"
        )
    return encoder


def text_architecture(settings: TextSpec, dataset: Dataset) -> TextArchitecture:
    """Return width, length and FLOPs of the text encoder of a spec, without reading its weights."""
    with user_errors():
        return _family(settings).architecture(settings, dataset)


def check_text_weights(settings: TextSpec) -> None:
    """Raise `UserError` if the package or weights of the text encoder are not on this machine.

    Nothing is loaded. Weights that may be downloaded are not missing.
    """
    try:
        check = getattr(_family(settings), "check_weights", None)
    except ImportError as error:
        raise UserError(
            f"text encoder '{settings.encoder}': the package '{error.name}' is not installed"
        ) from error
    if check is not None:
        with user_errors():
            check(settings)


def family_of(name: str) -> tuple[str, str]:
    """Split `family:model`; the model is empty for a family alone."""
    family, _, model = name.partition(":")
    return family, model


# Any: a class as `TextEncoder` describes it, perhaps of another package.
def _family(settings: TextSpec) -> Any:
    return registry.load("text_encoder", family_of(settings.encoder)[0])


def model_of(settings: TextSpec, example: str) -> str:
    """Return the model in the name of an encoder; raises `UserError` for a family alone."""
    family, model = family_of(settings.encoder)
    if not model:
        raise UserError(
            f"text encoder '{family}' names no model: expected {family}:MODEL, for example {example}; see: "
            "flowrace list text_encoders"
        )
    return model


def check_layer(settings: TextSpec, depth: int) -> None:
    """Raise `UserError` for a block that an encoder of this depth does not have, or next to pooling."""
    if settings.layer is not None and settings.pooled:
        raise UserError(
            f"text.layer = {settings.layer} chooses the tokens of a block, but text.pooled = true uses the "
            "pooled vector of the last one; leave one of them out"
        )
    if settings.layer is not None and settings.layer > depth:
        raise UserError(
            f"text.layer = {settings.layer}, but text encoder '{settings.encoder}' has {depth} blocks; give "
            f"1 to {depth}"
        )


def check_length(settings: TextSpec, longest: int, shortest: int = 3) -> None:
    """Raise `UserError` for a number of tokens that an encoder cannot read."""
    if not shortest <= settings.length <= longest:
        raise UserError(
            f"text.length = {settings.length}, but text encoder '{settings.encoder}' reads {shortest} to "
            f"{longest} tokens; choose one of these"
        )


def text_flops(network: nn.Module, length: int, run: Callable[[nn.Module, Tensor], object]) -> int:
    """Count the FLOPs of one caption of `length` tokens, two for each multiply-add, on the meta device.

    `run` calls the network, which is on the meta device, with token numbers (1, length).
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run(network, torch.zeros(1, length, dtype=torch.int64, device="meta"))
    return counter.get_total_flops()
