"""Schedules: the learning rate and the decay of the EMA by training step."""

from __future__ import annotations

import torch

from harness.config.spec import EmaSpec, TrainSpec


def set_learning_rate(optimizer: torch.optim.Optimizer, train: TrainSpec, step: int) -> float:
    """Set and return the learning rate of a step (1-based), which is constant after a linear warm-up."""
    rate = train.learning_rate * min(1.0, step / train.warmup_steps if train.warmup_steps else 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def ema_decay(ema: EmaSpec, step: int) -> float:
    """Return the decay at a step (1-based), with warm-up min(decay, (1 + step) / (10 + step))."""
    return min(ema.decay, (1 + step) / (10 + step)) if ema.warmup else ema.decay
