"""Schedules: the learning rate and the decay of the EMA by training step."""

from __future__ import annotations

import math

from harness.config.training_spec import EmaSpec, TrainSpec
from harness.train.optimizer import RunOptimizer


def set_learning_rate(optimizer: RunOptimizer, train: TrainSpec, step: int) -> float:
    """Set and return the learning rate of a step (1-based)."""
    rate = train.learning_rate * learning_rate_factor(train, step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def learning_rate_factor(train: TrainSpec, step: int) -> float:
    """Return the factor of the learning rate at a step (1-based).

    It rises linearly to 1 over the warm-up. Then it is constant, or decays to 0 after the last step. The
    decay `inverse_sqrt` is sqrt(decay_after / step) from that step on, and multiplies the warm-up (EDM2,
    arXiv 2312.02696; its training_loop.py).
    """
    if train.decay == "inverse_sqrt":
        rise = min(step / train.warmup_steps, 1.0) if train.warmup_steps else 1.0
        return rise / math.sqrt(max(step / train.decay_after, 1.0))
    if step < train.warmup_steps:
        return step / train.warmup_steps
    if train.decay == "none":
        return 1.0
    done = (step - train.warmup_steps) / (train.steps + 1 - train.warmup_steps)
    return 1 - done if train.decay == "linear" else 0.5 + 0.5 * math.cos(math.pi * done)


def ema_decay(ema: EmaSpec, step: int) -> float:
    """Return the decay at a step (1-based), with warm-up min(decay, (1 + step) / (10 + step))."""
    return min(ema.decay, (1 + step) / (10 + step)) if ema.warmup else ema.decay
