"""Simulated races whose truth is known, judged by the functions that the audit itself uses.

A run's metric at step s is (8 + 300 (S s / 10k)^-0.9) times log-normal noise: of its seed (2 %, shared by a
pair so that it correlates by 0.7) and of each evaluation (1 %). The baseline (S = 1) is at the target at step
200k; runs are evaluated every 25k of 400k steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from reports.audit.curve_shape import speedup_between
from reports.audit.decision import decide
from reports.audit.inputs.claim import Claim
from reports.audit.inputs.run_log import AuditRun, AuditRuns
from reports.stats.curves import Costs, crossing, fit
from reports.stats.speedup import Speedup

SEED = 20240607
UNIT, EVERY, STEPS, CROSSING = 10_000.0, 25_000.0, 400_000.0, 200_000.0
Noise = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
"""Standardised noise of a shape; the last axis is time."""


def metric(step: np.ndarray | float) -> np.ndarray | float:
    return 8 + 300 * (np.asarray(step) / UNIT) ** -0.9


TARGET = float(metric(CROSSING))


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape)


def heavy(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Student's t with 3 degrees of freedom, of standard deviation 1."""
    return rng.standard_t(3, shape) / math.sqrt(3)


def skewed(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Exponential, of mean 0 and standard deviation 1: most seeds are alike and a few are worse."""
    return rng.exponential(size=shape) - 1


def autocorrelated(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """AR(1) in time with coefficient 0.8, of standard deviation 1."""
    noise = rng.standard_normal(shape)
    for i in range(1, shape[-1]):
        noise[..., i] = 0.8 * noise[..., i - 1] + 0.6 * noise[..., i]
    return noise


@dataclass(frozen=True)
class World:
    """What is true, and how it is observed."""

    truth: float = 2.0
    n: int = 3
    seed_sd: float = 0.02
    eval_sd: float = 0.01
    correlation: float = 0.7
    steps: float = STEPS
    every: float = EVERY
    seeds: Noise = normal
    evaluations: Noise = normal

    @property
    def grid(self) -> np.ndarray:
        """Evaluations, the last one at the end of the run."""
        return np.append(np.arange(self.every, self.steps, self.every), self.steps)


def simulate(world: World, audits: int, seed: int = SEED) -> tuple[np.ndarray, np.ndarray]:
    """Metrics of the baselines and of the candidates, (audits, n, evaluations) each."""
    rng, shape = np.random.default_rng(seed), (audits, world.n)
    shared = math.sqrt(world.correlation) * world.seeds(rng, shape)
    found = []
    for speed in (1.0, world.truth):
        own = math.sqrt(1 - world.correlation) * world.seeds(rng, shape)
        noise = world.seed_sd * (shared + own)[..., None]
        noise = noise + world.eval_sd * world.evaluations(rng, (*shape, len(world.grid)))
        found.append(metric(speed * world.grid) * np.exp(noise))
    return found[0], found[1]


def logs_of(grid: np.ndarray, base: np.ndarray, cand: np.ndarray, *, paired: bool = True) -> AuditRuns:
    """The runs of one audit; unpaired ones have seeds of their own."""
    costs = Costs(np.array([0.0, *grid]), {"steps": np.array([0.0, *grid])})
    apart = 0 if paired else len(base)
    arms = (
        {i + shift: AuditRun(name, i + shift, name, fit(grid, row), costs) for i, row in enumerate(rows)}
        for name, rows, shift in (("base", base, 0), ("cand", cand, apart))
    )
    return AuditRuns(*arms)


def gain_of(logs: AuditRuns, target: float = TARGET, confidence: float = 0.95) -> Speedup:
    arms = (logs.baseline, logs.candidate)
    return speedup_between(
        logs,
        "steps",
        [{s: crossing(log.curve, target) for s, log in arm.items()} for arm in arms],
        confidence,
    )


def gains(world: World, audits: int, *, seed: int = SEED, paired: bool = True) -> list[Speedup]:
    base, cand = simulate(world, audits, seed)
    return [gain_of(logs_of(world.grid, b, c, paired=paired)) for b, c in zip(base, cand, strict=True)]


def claim_of(factor: float) -> Claim:
    return Claim(
        name="simulated", candidate="cand", baseline="base", metric="fid", target=TARGET, factor=factor
    )


def verdicts(found: list[Speedup], factor: float) -> dict[str, float]:
    """Shares of supported, refuted, inconclusive."""
    claim = claim_of(factor)
    told = [decide(claim, one) for one in found]
    return {word: told.count(word) / len(told) for word in ("supported", "refuted", "inconclusive")}


def coverage(found: list[Speedup], truth: float) -> float:
    return float(np.mean([one.low <= truth <= one.high for one in found]))


def false_support(found: list[Speedup], truth: float) -> float:
    """How often the low end lies above the truth: the claim whose edge is the truth is supported."""
    return float(np.mean([one.low > truth for one in found]))
