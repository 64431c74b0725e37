"""All samples of an evaluation spec, in batches, as tests compare them with an evaluator's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from harness.config.evaluation_spec import EvalSpec
from harness.flow.sampling import Sampling, draw_batch, sample_labels
from harness.runtime.random_streams import Streams


def draw_samples(
    model: nn.Module, spec: EvalSpec, shape: tuple[int, ...], classes: int, device: torch.device
) -> Tensor:
    """Return samples as uint8 (N, C, H, W) on the CPU; sample i depends on `spec.seed` and i alone."""
    starts = range(0, spec.samples, spec.batch_size)
    parts = [np.arange(start, min(start + spec.batch_size, spec.samples)) for start in starts]
    streams = Streams(spec.seed)
    sampling = Sampling(spec, shape, classes, device)
    return torch.cat(
        [draw_batch(model, sampling, part, sample_labels(spec, streams, part, classes)) for part in parts]
    )
