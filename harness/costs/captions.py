"""The cost of encoding the captions of a run's data, which happens once for all runs with that encoder."""

from __future__ import annotations

from typing import NamedTuple

from harness.config.spec import RunSpec
from harness.data.found import captions_in
from harness.data.open import outlined
from harness.text.base import text_architecture


class CaptionCost(NamedTuple):
    """The FLOPs of a text encoder, without those of captions that are already in the cache."""

    flops_each: int
    """FLOPs of one caption."""
    captions: int | None
    """Number of captions, equal ones included; None if the data are not here."""

    @property
    def flops(self) -> int | None:
        """FLOPs of all captions, at most; None if their number is unknown."""
        if self.flops_each == 0:
            return 0
        return None if self.captions is None else self.captions * self.flops_each


def caption_cost(spec: RunSpec) -> CaptionCost | None:
    """Return the cost of a run's captions; None for a run that is conditioned on labels."""
    if not spec.text.encoder:
        return None
    dataset = outlined(spec.data)
    found = captions_in(dataset)
    return CaptionCost(text_architecture(spec.text, dataset).flops, found.captions if found else None)
