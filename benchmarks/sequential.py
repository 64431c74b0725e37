"""Operating characteristics of races that stop when their claims are decided, by simulation.

    python -m benchmarks.sequential [--races 100000]

Log ratios of pairs are drawn, and Student's statistics are computed from running sums; only the critical
values come from the package. Writes benchmarks/results/sequential.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from benchmarks.operating_characteristics import rounded
from benchmarks.simulated_audits import TARGET, World, autocorrelated, simulate
from benchmarks.simulated_audits import heavy as heavy_noise
from harness.records.early_end import crossed_for_good
from reports.audit.inputs.claim import Claim, Sequential
from reports.audit.looks import decided_by
from reports.stats.crossing import crossing
from reports.stats.curves import fit
from reports.stats.sequential import SPENDING, anytime_critical, boundaries
from reports.stats.t_interval import t_interval

RESULTS = Path(__file__).parent / "results"
SEED = 20261130
ALPHA = 0.05
FIRST = 3
Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape)


def heavy(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return Student's t with 3 degrees of freedom."""
    return rng.standard_t(3, shape)


def log_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return skewed values: log-normal with sigma 0.5, centred."""
    return rng.lognormal(0, 0.5, shape) - math.exp(0.125)


def exponential(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.exponential(1, shape) - 1


def pair_of_runs(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return log ratios of two arms with a correlation of 0.7, and independent noise of evaluations."""
    shared = rng.standard_normal(shape)
    one, two = (math.sqrt(0.7) * shared + math.sqrt(0.3) * rng.standard_normal(shape) for _ in range(2))
    return one - two + 0.5 * rng.standard_normal(shape)


WORLDS: Mapping[str, Draw] = {
    "normal": normal,
    "pairs of runs, correlation 0.7, evaluation noise": pair_of_runs,
    "heavy tails (t, 3 degrees)": heavy,
    "skewed (log-normal 0.5), long tail above": log_normal,
    "skewed (log-normal 0.5), long tail below": lambda rng, shape: -log_normal(rng, shape),
    "skewed (exponential), long tail below": lambda rng, shape: -exponential(rng, shape),
}


def statistics(x: np.ndarray) -> np.ndarray:
    """Return T_n of every path (races, pairs) at every n; the first column is 0."""
    n = np.arange(1, x.shape[1] + 1)
    total = x.cumsum(axis=1)
    spread = np.sqrt(np.maximum((x * x).cumsum(axis=1) - total**2 / n, 0) / np.maximum(n - 1, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = total / np.sqrt(n) / spread
    t[:, 0] = 0
    return t


def ever(t: np.ndarray, bounds: Mapping[int, float], *, above: bool | None = None) -> float:
    """Return the share of races that cross at any look: on one side, or on both without `above`."""
    out = np.zeros(len(t), bool)
    for n, bound in bounds.items():
        side = abs(t[:, n - 1]) if above is None else t[:, n - 1] if above else -t[:, n - 1]
        out |= side > bound
    return float(out.mean())


def looks(most: int, alpha: float = ALPHA, spending: str = "linear") -> Mapping[int, float]:
    return boundaries(tuple(range(FIRST, most + 1)), alpha, spending)


def edge(races: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return false support at the edge of the claim at any stopping time, and coverage of all intervals."""
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for name, draw in WORLDS.items():
        t = statistics(draw(np.random.default_rng(SEED), (races, 20)))
        rows[name] = {
            f"N={most}": {
                "false support": ever(t, looks(most), above=True),
                "false refutation": ever(t, looks(most), above=False),
                "all intervals contain the truth": 1 - ever(t, looks(most)),
            }
            for most in (3, 4, 6, 10, 15, 20)
        }
    return rows


def rules(races: int) -> dict[str, dict[str, float]]:
    """Return false support and mean pairs of each rule at N = 10, by the effect in standard deviations."""
    peeking = {n: _student(n) for n in range(FIRST, 11)}
    named: dict[str, Mapping[int, float]] = {
        **{f"group, {spending}": looks(10, spending=spending) for spending in SPENDING},
        "anytime, g = 25": {n: anytime_critical(n, 25) for n in range(FIRST, 11)},
        "judged once, at 10": {10: _student(10)},
        "peeking after every pair (invalid)": peeking,
    }
    rows = {}
    for name, bounds in named.items():
        rows[name] = {}
        for effect in (0.0, 1.5, 3.0):
            x = np.random.default_rng(SEED).standard_normal((races, 10)) + effect
            t = statistics(x)
            rows[name][f"support at effect {effect:g}"] = ever(t, bounds, above=True)
            rows[name][f"pairs at effect {effect:g}"] = _mean_pairs(t, bounds)
    return rows


def _mean_pairs(t: np.ndarray, bounds: Mapping[int, float]) -> float:
    """Return the mean number of pairs until a decision on either side, at most the last look."""
    stop = np.full(len(t), max(bounds))
    for n in sorted(bounds, reverse=True):
        stop = np.where(abs(t[:, n - 1]) > bounds[n], n, stop)
    return float(stop.mean())


def _student(n: int) -> float:
    return float(t_interval(0.0, 1.0, n - 1, 1 - ALPHA)[1])


def censored(races: int) -> dict[str, float]:
    """Return false support at the edge if baselines are cut at a horizon, N = 10.

    A cut baseline time makes a log ratio smaller, so the low end of the interval holds.
    """
    rng = np.random.default_rng(SEED)
    rows = {}
    for share in (0.1, 0.3, 0.5):
        base, cand = rng.standard_normal((2, races, 10))
        cut = np.minimum(base, np.quantile(base, 1 - share))
        rows[f"{share:.0%} of baselines censored"] = ever(statistics(cut - cand), looks(10), above=True)
    return rows


def families(races: int) -> dict[str, float]:
    """Return the chance of any false support in a family whose claims share the baseline, by Holm, N = 10."""
    rng = np.random.default_rng(SEED)
    rows = {}
    for claims in (2, 4, 16):
        base = rng.standard_normal((races // claims, 10))
        wrong = np.zeros(len(base), bool)
        # With every claim at its edge, the first rejection is at alpha / m.
        for _ in range(claims):
            t = statistics(base - rng.standard_normal(base.shape))
            for n, bound in looks(10, ALPHA / claims).items():
                wrong |= t[:, n - 1] > bound
        rows[f"{claims} claims"] = float(wrong.mean())
    return rows


EVERY, STEPS = 60, 480
"""Steps between evaluations of `methods-digits`, and the length of its runs."""


CURVES: Mapping[str, World] = MappingProxyType(
    {
        "seed noise 2 %, evaluation noise 1 %, correlation 0.7": World(n=10),
        "evaluation noise 5 %": World(n=10, eval_sd=0.05),
        "evaluation noise 5 %, heavy-tailed": World(n=10, eval_sd=0.05, evaluations=heavy_noise),
        "evaluation noise 5 %, autocorrelated": World(n=10, eval_sd=0.05, evaluations=autocorrelated),
        "half of the baselines censored": World(n=10, steps=200_000.0, every=12_500.0),
    }
)
"""The families of simulated_audits.py: curves with a true speed-up of 2."""


def of_curves(races: int) -> dict[str, dict[str, float]]:
    """Return false support at the edge and coverage for times that are crossings of noisy curves, N = 10.

    Runs go to their last step, or end early with three evaluations in a row at or below the target. A time
    beyond the last step is censored there, as in an audit.
    """
    rows = {}
    for name, world in CURVES.items():
        base, cand = simulate(world, races)
        for patience in (0, 3):
            (slow, censored_at), (fast, _) = (_log_times(arm, world, patience) for arm in (base, cand))
            x = slow - fast
            t = statistics(x - math.log(world.truth))
            # A censored baseline opens the high end of the interval.
            closed = ~np.logical_or.accumulate(censored_at, axis=1)
            bounds = looks(10)
            missed = np.zeros(races, bool)
            for n, bound in bounds.items():
                missed |= (t[:, n - 1] > bound) | ((t[:, n - 1] < -bound) & closed[:, n - 1])
            until = f"until decided, patience = {patience}" if patience else "until the end"
            rows[f"{name}; {until}"] = {
                "false support": ever(t, bounds, above=True),
                "all intervals contain the truth": 1 - float(missed.mean()),
                "median speed-up": math.exp(float(np.median(x))),
                "share of steps": _trained(np.stack([base, cand]), world, patience),
            }
    return rows


def _log_times(values: np.ndarray, world: World, patience: int) -> tuple[np.ndarray, np.ndarray]:
    """Return log times to target of runs (races, pairs, evaluations) as an audit finds them, and which are
    censored at the last step."""
    found, censored_at = np.empty(values.shape[:2]), np.zeros(values.shape[:2], bool)
    for place in np.ndindex(*found.shape):
        own = values[place]
        end = crossed_for_good(own.tolist(), TARGET, patience) if patience else None
        kept = len(own) if end is None else end + 1
        one = crossing(fit(world.grid[:kept], own[:kept]), TARGET)
        found[place], censored_at[place] = math.log(one.step), one.censored == "right"
    return found, censored_at


def _trained(values: np.ndarray, world: World, patience: int) -> float:
    """Return the share of steps that are trained."""
    if not patience:
        return 1.0
    runs = values.reshape(-1, values.shape[-1])
    ends = [crossed_for_good(own.tolist(), TARGET, patience) for own in runs]
    steps = [world.grid[-1 if end is None else end] for end in ends]
    return float(np.mean(steps) / world.grid[-1])


def replayed(futility: float, races: int = 60, most: int = 10, spending: str = "linear") -> dict[str, float]:
    """Return what a race of `methods-digits` takes, with its recorded means and spreads of log ratios.

    The study has three seeds, with which a race takes its first look. So every arm is continued to `most`
    pairs by normal log ratios of the recorded mean and spread. Each arm claims to be faster than flow in
    steps. The verdicts of all pairs, judged once with Holm's p-values, are those to reach.

    The share of steps is that with `until = "decided"`, if a run ends with the first evaluation at or below
    the target, or with the second in a row.
    """
    ratios, flow = recorded_ratios()
    means, spreads = np.mean(list(ratios.values()), axis=1), np.std(list(ratios.values()), axis=1, ddof=1)
    rng = np.random.default_rng(SEED)
    arms = len(means)
    shares, same, lost, wrong = [], [], [], []
    steps: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(races):
        x = means[:, None] + spreads[:, None] * rng.standard_normal((arms, most))
        full = _holm_once(statistics(x)[:, -1], most)
        verdicts, ends = _holm_looks(x, most, futility, spending)
        shares.append((ends.sum() + ends.max()) / ((arms + 1) * most))
        times = flow / np.exp(x)
        for patience, own in steps.items():
            spent = sum(float(_ended(times[arm, : ends[arm]], patience).sum()) for arm in range(arms))
            spent += float(_ended(np.full(ends.max(), flow), patience).sum())
            own.append(spent / ((arms + 1) * most * STEPS))
        same.append(float((verdicts == full).mean()))
        lost.append(float(((verdicts == 0) & (full != 0)).mean()))
        wrong.append(float((verdicts * full == -1).mean()))
    return {
        "arms": arms,
        "share of runs": float(np.mean(shares)),
        "verdicts that agree": float(np.mean(same)),
        "decided by all runs but not by the race": float(np.mean(lost)),
        "decided the other way": float(np.mean(wrong)),
        "share of steps, until = decided, patience = 1": float(np.mean(steps[1])),
        "share of steps, until = decided, patience = 2": float(np.mean(steps[2])),
    }


def _ended(times: np.ndarray, patience: int) -> np.ndarray:
    """Return the steps of runs with these times to target, which end at evaluations."""
    return np.minimum(np.ceil(times / EVERY) * EVERY + (patience - 1) * EVERY, STEPS)


def recorded_ratios() -> tuple[dict[str, list[float]], float]:
    """Return the log ratios in steps to flow, by seed, of each arm that always reached the target, and the
    mean time of flow."""
    times: dict[str, dict[int, float]] = {}
    with open(RESULTS / "methods-digits" / "methods-digits-runs.csv", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["censored"] == "" and row["steps"]:
                times.setdefault(row["method"], {})[int(row["seed"])] = math.log(float(row["steps"]))
    flow = times.pop("flow")
    ratios = {
        arm: [flow[seed] - own[seed] for seed in flow]
        for arm, own in times.items()
        if own.keys() == flow.keys()
    }
    return ratios, math.exp(float(np.mean(list(flow.values()))))


def _holm_once(t: np.ndarray, n: int) -> np.ndarray:
    """Return verdicts (1 faster, -1 slower, 0 open) of statistics that are judged once."""
    order, verdicts = np.argsort(-abs(t)), np.zeros(len(t), int)
    for rank, arm in enumerate(order):
        if abs(t[arm]) <= float(t_interval(0.0, 1.0, n - 1, 1 - ALPHA / (len(t) - rank))[1]):
            break
        verdicts[arm] = int(np.sign(t[arm]))
    return verdicts


def _holm_looks(
    x: np.ndarray, most: int, futility: float, spending: str = "linear"
) -> tuple[np.ndarray, np.ndarray]:
    """Return verdicts as above, and the number of pairs of each arm, with Holm's method at every look.

    An arm is given up if its chance of a decision, as an audit predicts it, falls below `futility`.
    """
    t, arms = statistics(x), len(x)
    rule = Sequential.model_validate({"max_pairs": most, "futility": futility, "spending": spending})
    claim = Claim(
        name="faster", candidate="arm", baseline="flow", metric="fd", target=1.0, factor=1.0, sequential=rule
    )
    verdicts, ends, going = np.zeros(arms, int), np.full(arms, most), np.ones(arms, bool)
    for n in range(FIRST, most + 1):
        while (open_ := (verdicts == 0)).any():
            bounds = looks(most, ALPHA / int(open_.sum()), spending)
            new = open_ & going & (abs(t[:, n - 1]) > bounds[n])
            if not new.any():
                break
            verdicts[new], ends[new], going[new] = np.sign(t[new, n - 1]).astype(int), n, False
        if futility and n < most:
            alpha = ALPHA / max(int((verdicts == 0).sum()), 1)
            for arm in np.flatnonzero(going):
                mean, sd = float(x[arm, :n].mean()), float(x[arm, :n].std(ddof=1))
                chance = decided_by(claim, mean, sd, alpha, most, given=(n, mean, sd))[most]
                if chance < futility:
                    ends[arm], going[arm] = n, False
    return verdicts, ends


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--races", type=int, default=100_000)
    races = parser.parse_args().races
    begun = time.perf_counter()
    result = {
        "what": f"{races} simulated races; 95 %, looks at every number of pairs from 3 on, linear spending",
        "truth at the edge of the claim": edge(races),
        "rules, N=10": rules(races),
        "censored baselines, N=10": censored(races),
        "families that share a baseline, N=10": families(races),
        "crossings of curves, N=10": of_curves(races // 25),
        "methods-digits, continued to 10 pairs": {
            f"{spending}, futility = {futility:g}": replayed(futility, spending=spending)
            for spending in ("linear", "obrien_fleming")
            for futility in (0.0, 0.1, 0.3)
        },
    }
    print(json.dumps(rounded(result), indent=1))
    print(f"{time.perf_counter() - begun:.0f} s")
    (RESULTS / "sequential.json").write_text(json.dumps(rounded(result), indent=1) + "\n")


if __name__ == "__main__":
    main()
