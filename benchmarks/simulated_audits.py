"""Simulated races with a known truth, judged by the audit's own functions.

A run's metric at step s is (8 + 300 (S s / 10k)^-0.9) times log-normal noise. Seeds have 2 % noise, with a
correlation of 0.7 within a pair; evaluations have 1 %. The baseline (S = 1) reaches the target at step 200k.
Runs are evaluated every 25k of 400k steps.
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
from reports.stats.crossing import crossing
from reports.stats.curves import Costs, fit
from reports.stats.speedup import Speedup

SEED = 20240607
UNIT, EVERY, STEPS, CROSSING = 10_000.0, 25_000.0, 400_000.0, 200_000.0
Noise = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
"""Standardised noise of a shape; the last axis is time."""


def metric(step: np.ndarray | float) -> np.ndarray | float:
    """Return the baseline's metric without noise."""
    return 8 + 300 * (np.asarray(step) / UNIT) ** -0.9


TARGET = float(metric(CROSSING))


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape)


def heavy(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw from Student's t with 3 degrees of freedom, scaled to standard deviation 1."""
    return rng.standard_t(3, shape) / math.sqrt(3)


def skewed(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw from an exponential shifted to mean 0: most seeds are similar and a few are worse."""
    return rng.exponential(size=shape) - 1


def autocorrelated(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw AR(1) noise in time with coefficient 0.8 and standard deviation 1."""
    noise = rng.standard_normal(shape)
    for i in range(1, shape[-1]):
        noise[..., i] = 0.8 * noise[..., i - 1] + 0.6 * noise[..., i]
    return noise


@dataclass(frozen=True)
class World:
    """The true speed-up, and the noise and schedule of its observation."""

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
        """The steps of evaluations, the last one at the end of the run."""
        return np.append(np.arange(self.every, self.steps, self.every), self.steps)


def simulate(world: World, audits: int, seed: int = SEED) -> tuple[np.ndarray, np.ndarray]:
    """Return the metrics of baselines and candidates, (audits, n, evaluations) each."""
    rng, shape = np.random.default_rng(seed), (audits, world.n)
    shared = math.sqrt(world.correlation) * world.seeds(rng, shape)
    metrics = []
    for speed in (1.0, world.truth):
        own = math.sqrt(1 - world.correlation) * world.seeds(rng, shape)
        noise = world.seed_sd * (shared + own)[..., None]
        noise = noise + world.eval_sd * world.evaluations(rng, (*shape, len(world.grid)))
        metrics.append(metric(speed * world.grid) * np.exp(noise))
    return metrics[0], metrics[1]


def logs_of(grid: np.ndarray, base: np.ndarray, cand: np.ndarray, *, paired: bool = True) -> AuditRuns:
    """Return the runs of one audit; unpaired arms have no seed in common."""
    costs = Costs(np.array([0.0, *grid]), {"steps": np.array([0.0, *grid])})
    first_seed = 0 if paired else len(base)
    arms = (
        {i + shift: AuditRun(name, i + shift, name, fit(grid, row), costs) for i, row in enumerate(rows)}
        for name, rows, shift in (("base", base, 0), ("cand", cand, first_seed))
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
    """Return a claim that allows 10 %, as in the published table of operating characteristics."""
    shared = {"name": "simulated", "candidate": "cand", "baseline": "base", "metric": "fid"}
    return Claim(**shared, target=TARGET, factor=factor, tolerance=0.10)


def verdicts(found: list[Speedup], factor: float) -> dict[str, float]:
    """Return the fractions of supported, refuted and inconclusive verdicts."""
    claim = claim_of(factor)
    decisions = [decide(claim, gain) for gain in found]
    return {
        verdict: decisions.count(verdict) / len(decisions)
        for verdict in ("supported", "refuted", "inconclusive")
    }


def coverage(found: list[Speedup], truth: float) -> float:
    return float(np.mean([gain.low <= truth <= gain.high for gain in found]))


def false_support(found: list[Speedup], truth: float) -> float:
    """Return the fraction of low ends above the truth, which would support a claim of exactly the truth."""
    return float(np.mean([gain.low > truth for gain in found]))
