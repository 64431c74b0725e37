"""Given tokens: tokens that are not generated, for example the first frame of a video (`data.given`).

They are clean in student, teacher and sampler, and in no loss (harness/backbone/network.py). With generated
tokens G_p of part p, of which a part may have none,

    L_gen = sum_p w_p mean_b mean_{i in G_p} || v_i - (eps_i - x0_i) ||^2

and a second term is a mean over generated tokens.

    B  samples    P  parts    T  tokens
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from harness.backbone.config import BackboneConfig
from harness.flow.batch import Batch
from methods.common.missing_parts import present_tokens, weights_of_samples


def counted_tokens(batch: Batch, backbone: BackboneConfig) -> Tensor | None:
    """Return the mask of tokens in the means of losses, (B, T) bool: generated ones of existing parts.

    None if these are all tokens.
    """
    present, given = present_tokens(batch, backbone), backbone.given_tokens
    if given is None:
        return present
    generated = ~given.to(batch.x0.device)
    return generated.expand(len(batch.x0), -1) if present is None else present & generated


def generated_only(tokens: Tensor, backbone: BackboneConfig, dim: int = 1) -> Tensor:
    """Return the generated tokens of every sample; `dim` is the axis of tokens."""
    if backbone.given_tokens is None:
        return tokens
    starts = itertools.accumulate((part.tokens for part in backbone.parts), initial=0)
    each = zip(starts, backbone.given, backbone.parts, strict=False)
    # Positions from the layout, because tensors of an estimate have no values.
    places = [place for start, given, part in each for place in range(start + given, start + part.tokens)]
    return tokens.index_select(dim, torch.tensor(places, device=tokens.device))


def mean_of_generated(
    errors: Tensor, batch: Batch, backbone: BackboneConfig, weights: Sequence[float]
) -> Tensor:
    """Return the mean of errors (B, *x_shape) over generated values, with weights of parts.

    Parts without a generated value have no weight.
    """
    mask = backbone.generated_values
    assert mask is not None
    pairs = zip(backbone.given, backbone.parts, strict=True)
    counts = [(part.tokens - given) * (math.prod(part.shape) // part.tokens) for given, part in pairs]
    errors = errors * mask.to(errors.device)
    means = [
        part.flatten(1).sum(dim=1) / max(count, 1)
        for part, count in zip(backbone.split_parts(errors), counts, strict=True)
    ]
    weights = [weight if count else 0.0 for weight, count in zip(weights or (1.0,), counts, strict=True)]
    if batch.present is None:
        return torch.stack([weight * mean.mean() for weight, mean in zip(weights, means, strict=True)]).sum()
    return (weights_of_samples(batch.present, weights) * torch.stack(means, dim=1)).sum(dim=1).mean()
