"""Schedules: the learning rate and the decay of the EMA by training step."""

from __future__ import annotations

import math

from harness.config.spec import EmaSpec, TrainSpec
from harness.train.optimizer import RunOptimizer


def set_learning_rate(optimizer: RunOptimizer, train: TrainSpec, step: int) -> float:
    """Set and return the learning rate of a step (1-based)."""
    rate = train.learning_rate * learning_rate_factor(train, step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def learning_rate_factor(train: TrainSpec, step: int) -> float:
    """Return the factor of the learning rate at a step (1-based).

    It rises linearly to 1 over the warm-up. Then it is constant, or decays to 0 after the last step.
    """
    if step < train.warmup_steps:
        return step / train.warmup_steps
    if train.decay == "none":
        return 1.0
    done = (step - train.warmup_steps) / (train.steps + 1 - train.warmup_steps)
    return 1 - done if train.decay == "linear" else 0.5 + 0.5 * math.cos(math.pi * done)


def ema_decay(ema: EmaSpec, step: int) -> float:
    """Return the decay at a step (1-based), with warm-up min(decay, (1 + step) / (10 + step))."""
    return min(ema.decay, (1 + step) / (10 + step)) if ema.warmup else ema.decay
