"""CPU seconds and peak memory of reports, audits and status of large studies, and how they grow.

    python -m benchmarks.big_studies [--runs 100 200 500 1000 2000] [--evaluations 100 200 400 800]
        [--folders 5000] [--before CHECKOUT]

A study has the same number of seeds of two methods. Its runs have 400 evaluations, and 10 train lines per
evaluation. `by evaluations` has studies of 100 runs with other numbers of evaluations. The folders of which
the status is printed have 60 train lines each. Every command is a separate process; its CPU seconds (user
and system) are less sensitive to other load than the clock's, which are written too. `--before` names a
checkout of an earlier version, whose commands are interleaved with ours up to `--before-runs` runs. `growth`
has what a further run takes, and a further evaluation of all runs. Studies are written by other processes,
because a command starts with the peak memory of the process that starts it. Writes
benchmarks/results/big-studies.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tomli_w

from benchmarks.audit import BATCH, FLOPS, METHODS, SECONDS, STEPS
from benchmarks.simulated_audits import TARGET, metric
from harness.records.record import DONE, EVENTS, SPEC
from harness.records.record_chain import CHAIN, ChainWriter, digest_of
from sweeps.plan.plan import make_plan
from sweeps.plan.study import load_study

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "big-studies.json"
EVALUATIONS, LINES, SHORT = 400, 10, 60
"""Evaluations of a run, train lines per evaluation, and train lines of a run whose status is printed."""
FIXED = 100
"""Runs of the studies with other numbers of evaluations."""


class Usage(NamedTuple):
    """Time and memory of one command."""

    cpu: float
    wall: float
    peak_megabytes: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, nargs="+", default=[100, 200, 500, 1000, 2000])
    parser.add_argument("--evaluations", type=int, nargs="*", default=[100, 200, 400, 800])
    parser.add_argument("--folders", type=int, default=5000)
    parser.add_argument("--before", type=Path, help="Checkout of an earlier version.")
    parser.add_argument("--before-runs", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    versions = {"after": ROOT} | ({"before": options.before.resolve()} if options.before else {})
    studies: dict[str, dict[str, Any]] = {version: {} for version in versions}
    by_evaluations: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for runs in sorted(options.runs):
            in_process(write_study, folder, runs)
            for version, checkout in versions.items():
                if version == "after" or runs <= options.before_runs:
                    studies[version][str(runs)] = show(version, runs, commands(checkout, folder))
        for count in options.evaluations:
            place = folder / f"evaluations-{count}"
            in_process(write_study, place, FIXED, count)
            by_evaluations[str(count)] = show("after", FIXED, commands(ROOT, place))
        in_process(write_folders, folder / "many", options.folders)
        for version, checkout in versions.items():
            used = usage(checkout, "status", str(folder / "many"), "--json")
            studies[version]["status"] = show(version, options.folders, {"status": used})
    result = {
        "evaluations of a run": EVALUATIONS,
        "train lines of a run": EVALUATIONS * LINES,
        "folders of the status": options.folders,
        "cores": os.cpu_count(),
        "load average": [round(load, 1) for load in os.getloadavg()],
        **studies,
        "by evaluations": by_evaluations,
        "growth": growth(studies["after"], "run"),
        "growth by evaluations": growth(by_evaluations, "evaluation"),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["growth"]))


def in_process(work: Callable[..., None], *given: Any) -> None:
    """Do some work in a new process."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=given)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{work.__name__} ended with {process.exitcode}")


def commands(checkout: Path, folder: Path) -> dict[str, Usage]:
    runs, page = str(folder / "runs"), str(folder / "report.html")
    return {
        "report": usage(checkout, "report", runs, "-o", page),
        "audit": usage(checkout, "audit", str(folder / "claim.toml"), runs, "--json"),
    }


def usage(checkout: Path, *words: str) -> Usage:
    """Run a flowrace command of a checkout, and return what it took."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "harness.cli.main", *words]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=checkout, env=environment)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"flowrace {' '.join(words)} ended with {process.returncode}")
    # Linux counts the peak in kibibytes.
    return Usage(used.ru_utime + used.ru_stime, time.perf_counter() - begun, used.ru_maxrss * 1024 / 1e6)


def show(version: str, runs: int, found: dict[str, Usage]) -> dict[str, Any]:
    rows = {
        what: {
            "cpu seconds": round(used.cpu, 2),
            "wall seconds": round(used.wall, 2),
            "peak MB": round(used.peak_megabytes),
        }
        for what, used in found.items()
    }
    print(version, runs, json.dumps(rows), flush=True)
    return rows


def growth(studies: dict[str, Any], unit: str) -> dict[str, dict[str, dict[str, float]]]:
    """Return what a further unit takes between a size of a study and the next: equal numbers are linear."""
    sizes = sorted(int(size) for size in studies if size.isdecimal())
    return {
        what: {
            f"{name} of a further {unit}": {
                f"{small} to {large}": round(
                    (studies[str(large)][what][name] - studies[str(small)][what][name]) / (large - small), 4
                )
                for small, large in pairwise(sizes)
            }
            for name in ("cpu seconds", "peak MB")
        }
        for what in ("report", "audit")
    }


def write_study(folder: Path, runs: int, evaluations: int = EVALUATIONS) -> None:
    """Write the runs of a study that are missing, and a claim about them."""
    folder.mkdir(exist_ok=True)
    claim = {"name": "twice", "candidate": "repa", "baseline": "flow", "metric": "fid", "factor": 2.0}
    content = tomli_w.dumps({"claim": {**claim, "target": float(f"{TARGET:.4g}")}})
    (folder / "claim.toml").write_text(content)
    steps = STEPS // evaluations * np.arange(1, evaluations + 1)
    lines = list(train_lines(steps))
    for seed in range(runs // len(METHODS)):
        rng = np.random.default_rng(seed)
        shared = rng.normal(0, 0.0167)
        for method, speed in METHODS.items():
            noise = shared + rng.normal(0, 0.011) + rng.normal(0, 0.01, evaluations)
            values = (np.asarray(metric(speed * steps)) * np.exp(noise)).tolist()
            path = folder / "runs" / f"{method}-{seed}"
            if not path.exists():
                evaluated = [_line(_eval(step, v)) for step, v in zip(steps.tolist(), values, strict=True)]
                parts = [part for pair in zip(lines, evaluated, strict=True) for part in pair]
                spec = {
                    "seed": seed,
                    "method": {"name": method},
                    "train": {"batch_size": BATCH, "steps": STEPS},
                }
                write_run(path, tomli_w.dumps(spec), b"".join(parts), STEPS)


def train_lines(steps: np.ndarray) -> Iterator[bytes]:
    """Yield the train lines before each evaluation, which are the same in all runs."""
    every = int(steps[0]) // LINES
    for step in steps.tolist():
        yield b"".join(_line(_train(step - every * (LINES - 1 - i))) for i in range(LINES))


def write_folders(folder: Path, count: int) -> None:
    """Write a planned study of finished runs with few events."""
    spec = make_plan(load_study("digits")).runs[0].spec
    steps = spec.train.steps
    logged = [steps * k // SHORT for k in range(1, SHORT + 1)]
    content = b"".join(map(_line, map(_train, logged))) + _line(_eval(steps, 1.0))
    runs = [{"id": f"run-{k}", "cell": {"seed": k}, "steps": steps} for k in range(count)]
    for run in runs:
        toml = spec.model_copy(update={"seed": run["cell"]["seed"]}).to_toml()
        write_run(folder / run["id"], toml, content, steps)
    (folder / "plan.json").write_text(json.dumps({"runs": runs}))


def write_run(path: Path, spec: str, events: bytes, steps: int) -> None:
    """Write the record of a finished run with these lines of events."""
    (path / "checkpoints").mkdir(parents=True)
    (path / SPEC).write_text(spec)
    start = {"run": path.name, "device": "cuda", "device_name": "one", "devices": 8, "chain": CHAIN}
    (path / "environment.json").write_text(json.dumps([{**start, "started": 1_700_000_000_000}]))
    (path / EVENTS).write_bytes(events)
    chain = ChainWriter(path)
    chain.begin(b"", b"", digest_of(path / SPEC))
    chain.add(events, steps)
    chain.seal(end=True)
    chain.close()
    (path / DONE).write_text("{}")


# Any: events are JSON objects.
def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode() + b"\n"


def _train(step: int) -> dict[str, Any]:
    losses = {"flow": 0.51234567, "align": -0.712345678}
    about = {"loss": 0.5, "losses": losses, "grad_norm": 0.3, "learning_rate": 1e-4}
    return {"kind": "train", "step": step, **about, **_spent(step)}


def _eval(step: int, value: float) -> dict[str, Any]:
    number = {"mean": value, "low": None, "high": None, "n": 10_000}
    return {"kind": "eval", "step": step, "metrics": {"fid": number}, "protocol": "one", **_spent(step)}


def _spent(step: int) -> dict[str, Any]:
    seconds = {name: SECONDS / 4 * step for name in ("student", "encoder", "optimizer", "ema")}
    return {"images": BATCH * step, "flops": int(FLOPS) * step, "seconds": {**seconds, "eval": 0.01 * step}}


if __name__ == "__main__":
    main()
