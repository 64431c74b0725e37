"""Operating characteristics of audits: every simulated number of the statistics guide, derived again.

    python -m benchmarks.operating_characteristics [--audits 1500]

The simulated worlds are defined in simulated_audits.py. Writes
benchmarks/results/operating_characteristics.json.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.special import stdtrit

from benchmarks.simulated_audits import (
    CROSSING,
    SEED,
    TARGET,
    World,
    autocorrelated,
    coverage,
    false_support,
    gain_of,
    gains,
    heavy,
    logs_of,
    metric,
    simulate,
    skewed,
    verdicts,
)
from reports.stats.crossing import crossing
from reports.stats.curves import Curve, fit
from reports.stats.power import detectable_with

RESULTS = Path(__file__).parent / "results" / "operating_characteristics.json"

TABLE: Mapping[str, tuple[float, World]] = {
    "truth 2.0x": (2.0, World()),
    "truth 1.82x (edge: false support)": (2.0, World(truth=2 / 1.1)),
    "truth 1.5x": (2.0, World(truth=1.5)),
    "truth 2.0x, eval noise 5%": (2.0, World(eval_sd=0.05)),
    "half of baselines censored, truth 2.0x": (2.0, World(steps=200_000.0)),
    "half censored, truth 1.82x": (2.0, World(truth=2 / 1.1, steps=200_000.0)),
    "all baselines censored at 180k, claim 1.5x, truth 2x": (1.5, World(steps=180_000.0)),
}
"""The rows of the table: the claimed factor, and the simulated world."""


def table(audits: int, sizes: tuple[int, ...] = (3, 5)) -> dict[str, dict[str, dict[str, float]]]:
    return {
        name: {f"n={n}": verdicts(gains(replace(world, n=n), audits), factor) for n in sizes}
        for name, (factor, world) in TABLE.items()
    }


def coverages(audits: int, world: World, sizes: tuple[int, ...] = (3, 5, 10)) -> dict[str, dict[str, float]]:
    """Return the coverage of 95 % intervals, and the rate of low ends above the truth."""
    rows = {}
    for n in sizes:
        found = gains(replace(world, n=n), audits)
        logs = [math.log(gain.estimate / world.truth) for gain in found]
        rows[f"n={n}"] = {
            "coverage": coverage(found, world.truth),
            "false support": false_support(found, world.truth),
            "bias": math.exp(float(np.mean(logs))),
            "sd": float(np.std(logs)),
        }
    return rows


def first_hit(grid: np.ndarray, values: np.ndarray, target: float = TARGET) -> float:
    """Return the first evaluation at or below the target, the usual reading of a raw curve."""
    below = values <= target
    return float(grid[below.argmax()] if below.any() else grid[-1])


def log_log(grid: np.ndarray, values: np.ndarray, target: float = TARGET) -> float:
    """Return the first crossing of the raw curve, linear in logs between evaluations."""
    return crossing(Curve(grid, values, np.minimum.accumulate(values)), target).step


def isotonic(grid: np.ndarray, values: np.ndarray, target: float = TARGET) -> float:
    """Return the crossing of the isotonic fit, as in an audit."""
    return crossing(fit(grid, values), target).step


def estimators(audits: int, n: int) -> dict[str, dict[str, float]]:
    """Return the geometric mean of the speed-up at truth 2.0, and the coverage of its paired t interval.

    Targets correspond to random steps in the octave from 160k to 320k, because the bias of a first hit
    depends on where between two evaluations the target is crossed.
    """
    rows = {}
    for spacing in (25_000.0, 80_000.0):
        world = World(n=n, every=spacing)
        targets = metric(np.random.default_rng(SEED).uniform(160_000, 320_000, audits))
        arms = simulate(world, audits)
        for rule in (first_hit, log_log, isotonic):
            times = [
                np.array(
                    [[rule(world.grid, row, t) for row in runs] for runs, t in zip(arm, targets, strict=True)]
                )
                for arm in arms
            ]
            d = np.log(times[0]) - np.log(times[1])
            half = float(stdtrit(n - 1, 0.975)) * d.std(axis=1, ddof=1) / math.sqrt(n)
            rows[f"{rule.__name__}, {len(world.grid)} evaluations"] = {
                "speedup": math.exp(float(d.mean())),
                "coverage": float((abs(d.mean(axis=1) - math.log(2)) <= half).mean()),
            }
    return rows


def grids(runs: int) -> dict[str, dict[str, float]]:
    """Return time to target relative to the truth, and its sd in logs, for one curve on two grids.

    The evaluation noise is 3 %.
    """
    rows = {}
    for spacing in (25_000.0, 2_000.0):
        world = World(n=1, seed_sd=0.0, eval_sd=0.03, every=spacing)
        base, _ = simulate(world, runs)
        for rule in (log_log, isotonic):
            logs = np.log([rule(world.grid, row[0]) / CROSSING for row in base])
            rows[f"{rule.__name__}, every {spacing / 1000:g}k"] = {
                "ratio": math.exp(float(logs.mean())),
                "sd": float(logs.std()),
            }
    return rows


def weights(runs: int) -> dict[str, float]:
    """Return the sd (in logs) of the time to target with equal weights, and with estimated weights.

    Each evaluation is the mean of three replicates with 3 % noise each. Estimated weights are the inverse of
    the replicates' sample variance.
    """
    world = World(n=3, seed_sd=0.0, eval_sd=0.03, every=5_000.0)
    base, _ = simulate(world, runs)
    logs, shown = np.log(base).mean(axis=1), np.log(base).var(axis=1, ddof=1)
    rows = {"alike": None, "by the variance they show": 1 / shown}
    times = {
        name: [
            crossing(fit(world.grid, np.exp(row), None if w is None else w[i]), TARGET).step
            for i, row in enumerate(logs)
        ]
        for name, w in rows.items()
    }
    return {name: float(np.std(np.log(crossings))) for name, crossings in times.items()}


def slopes() -> dict[str, float]:
    """Return the noise of the time from 2 % noise of the metric: noise / |d log metric / d log step|."""
    rows = {}
    for step in (50_000.0, 400_000.0):
        steep = 0.9 * (metric(step) - 8) / metric(step)
        rows[f"{step / 1000:g}k"] = 0.02 / float(steep)
    return rows


def powers() -> dict[str, dict[str, float]]:
    """Return the factors that are detectable with 80 % power (exact, by the noncentral t distribution)."""
    return {
        f"sd {sd:.0%}": {f"n={n}": detectable_with(n, sd, 0.95) for n in (2, 3, 5, 10)} for sd in (0.05, 0.10)
    }


def pairing(audits: int) -> dict[str, dict[str, float]]:
    """Return the median ratio of an interval's ends, paired and Welch, with and without correlation."""
    rows = {}
    for correlation in (0.7, 0.0):
        for n in (3, 5):
            world = World(n=n, correlation=correlation)
            rows[f"correlation {correlation:g}, n={n}"] = {
                name: float(np.median([gain.high / gain.low for gain in gains(world, audits, paired=paired)]))
                for name, paired in (("paired t", True), ("Welch", False))
            }
    return rows


def minimum_of_three(repeats: int = 200_000) -> dict[str, float]:
    """Return the bias of the best, and of the mean, of three replicates, in sd."""
    draws = np.random.default_rng(SEED).standard_normal((repeats, 3))
    return {"min": float(draws.min(axis=1).mean()), "mean": float(draws.mean(axis=1).mean())}


def frechet_bias(repeats: int = 100, dim: int = 64) -> dict[str, object]:
    """Return the bias of the Frechet distance between N samples and a standard normal.

    First, N times the bias for samples of that normal itself. Second, for 10k samples with a mean at
    distance 1.1, the plain distance against the extrapolation to N = infinity: a line in 1/N through 15
    sizes from 1000 to N, the rule of metrics/distances/frechet_infinity.py.
    """
    rng, sizes = np.random.default_rng(SEED), (250, 500, 1000, 2500, 5000, 10_000)
    bias = {n: np.mean([_frechet(rng.standard_normal((n, dim))) for _ in range(repeats // 2)]) for n in sizes}
    shift = np.full(dim, 1.1 / math.sqrt(dim))
    steps, plain, infinite = np.linspace(1000, 10_000, 15).astype(int), [], []
    for _ in range(repeats):
        samples = rng.standard_normal((10_000, dim)) + shift
        found = [_frechet(samples[rng.permutation(10_000)[:n]]) for n in steps]
        plain.append(found[-1] - 1.1**2)
        infinite.append(float(np.polyfit(1 / steps, found, 1)[1]) - 1.1**2)
    return {
        "bias x N": {str(n): float(n * value) for n, value in bias.items()},
        "theory": dim * (dim + 1) / 4 + dim,
        "FD-10k": {"bias": float(np.mean(plain)), "sd": float(np.std(plain))},
        "FD-infinity": {"bias": float(np.mean(infinite)), "sd": float(np.std(infinite))},
    }


def _frechet(samples: np.ndarray) -> float:
    """Return the distance to the standard normal: |mu|^2 + tr(C) + d - 2 tr(C^1/2)."""
    eigenvalues = np.linalg.eigvalsh(np.cov(samples.T))
    mean = samples.mean(axis=0)
    return float(mean @ mean + eigenvalues.sum() + len(mean) - 2 * np.sqrt(eigenvalues.clip(0)).sum())


BENDS: Mapping[str, World] = {
    "as above": World(),
    "evaluation noise: heavy tails (t, 3 degrees)": World(evaluations=heavy),
    "evaluation noise: autocorrelated (AR 0.8)": World(evaluations=autocorrelated),
    "evaluation noise 5%: heavy tails": World(eval_sd=0.05, evaluations=heavy),
    "evaluation noise 5%: autocorrelated": World(eval_sd=0.05, evaluations=autocorrelated),
    "evaluation noise 5%": World(eval_sd=0.05),
    "seed noise: heavy tails": World(seeds=heavy),
    "seed noise: skewed": World(seeds=skewed),
    "seed noise 10%": World(seed_sd=0.10),
}
"""Worlds that violate the assumptions of a t interval."""


def lopsided(audits: int) -> dict[str, dict[str, float]]:
    """Return coverage and false support when only the candidate's seeds are skewed, or evaluations noisy.

    n = 5, truth 2.0.
    """
    quiet = World(n=5, seed_sd=0.002, correlation=0.0)
    worlds = {
        "candidate's seeds skewed towards worse": replace(quiet, seed_sd=0.05, seeds=skewed),
        "candidate's evaluations 5% noise, the baseline's 1%": replace(World(n=5), eval_sd=0.05),
    }
    rows = {}
    for name, world in worlds.items():
        _, cand = simulate(world, audits)
        base, _ = simulate(quiet if "seeds" in name else World(n=5), audits, SEED)
        found = [gain_of(logs_of(world.grid, b, c)) for b, c in zip(base, cand, strict=True)]
        rows[name] = {"coverage": coverage(found, 2.0), "false support": false_support(found, 2.0)}
    return rows


def same_seed_target(audits: int, n: int = 5) -> dict[str, float]:
    """Return coverage and false support when the target comes from the audited baselines.

    It is the median of their fitted values at the true crossing, instead of a number from separate seeds.
    """
    world = World(n=n)
    base, cand = simulate(world, audits)
    found = []
    for b, c in zip(base, cand, strict=True):
        logs = logs_of(world.grid, b, c)
        at = int(np.flatnonzero(world.grid == CROSSING)[0])
        found.append(
            gain_of(logs, float(np.median([log.curve.fitted[at] for log in logs.baseline.values()])))
        )
    return {"coverage": coverage(found, 2.0), "false support": false_support(found, 2.0)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--audits", type=int, default=1500)
    audits = parser.parse_args().audits
    begun = time.perf_counter()
    result = {
        "what": "simulated audits: seed sd 2%, evaluation sd 1%, pair correlation 0.7, "
        "evaluated every 25k of 400k steps",
        "audits": audits,
        "table": table(audits),
        "coverage": coverages(4 * audits, World()),
        "where it bends, n=5": {
            name: coverages(2 * audits, world, (5,))["n=5"] for name, world in BENDS.items()
        },
        "where it bends, n=3": {
            name: coverages(2 * audits, world, (3,))["n=3"] for name, world in BENDS.items()
        },
        "lopsided arms": lopsided(2 * audits),
        "target from the audit's own seeds": same_seed_target(2 * audits),
        "estimators": {f"n={n}": estimators(audits, n) for n in (3, 5)},
        "grids": grids(2 * audits),
        "weights": weights(2 * audits),
        "time noise of 2% metric noise": slopes(),
        "detectable factors": powers(),
        "pairing": pairing(audits),
        "minimum of three": minimum_of_three(),
        "Frechet distance, d=64": frechet_bias(),
    }
    print(json.dumps(rounded(result), indent=1))
    print(f"{time.perf_counter() - begun:.0f} s")
    RESULTS.write_text(json.dumps(rounded(result), indent=1) + "\n")


def rounded(value: object) -> object:
    """Return nested mappings with all floats rounded to four decimals."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
