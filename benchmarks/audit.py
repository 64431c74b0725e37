"""The time of an audit of a large study: 200 runs (100 seeds of two methods) with 400 evaluations each.

    python -m benchmarks.audit [--seeds 100] [--evaluations 400] [--lines 10]

Creates run directories with the record's own writer (`lines` train lines per evaluation), and a tidy CSV of
the same curves, in a temporary folder. Audits both and reports on the directories, each in a separate
process. Writes benchmarks/results/audit.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tomli_w

from benchmarks.simulated_audits import TARGET, metric
from harness.records.record_writer import RecordWriter

METHODS = {"flow": 1.0, "repa": 2.0}
STEPS, BATCH, FLOPS, SECONDS = 400_000, 256, 3e12, 0.2
RESULTS = Path(__file__).parent / "results" / "audit.json"


class Usage(NamedTuple):
    seconds: float
    peak_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--evaluations", type=int, default=400)
    parser.add_argument("--lines", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, options.seeds, options.evaluations, options.lines)
        claim = str(folder / "claim.toml")
        usage = {
            "audit, run directories": timed("audit", claim, str(folder / "runs"), "--json"),
            "audit, CSV": timed("audit", claim, str(folder / "curves.csv"), "--json"),
            "report, run directories": timed(
                "report", str(folder / "runs"), "-o", str(folder / "report.html")
            ),
        }
    result = {
        "runs": options.seeds * len(METHODS),
        "evaluations of a run": options.evaluations,
        "train lines of a run": options.evaluations * options.lines,
        "cores": os.cpu_count(),
        **{
            what: {"seconds": round(used.seconds, 1), "peak MB": round(used.peak_bytes / 1e6)}
            for what, used in usage.items()
        },
    }
    print(json.dumps(result, indent=1))
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


def timed(*words: str) -> Usage:
    """Run a flowrace command; return its wall seconds and peak resident memory."""
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "harness.cli.main", *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"flowrace {' '.join(words)} ended with {os.waitstatus_to_exitcode(status)}")
    return Usage(time.perf_counter() - begun, usage.ru_maxrss * 1024)


def write(folder: Path, seeds: int, evaluations: int, lines: int) -> None:
    """Write the study as run directories and as a CSV, and a claim about it."""
    table = {"name": "twice", "candidate": "repa", "baseline": "flow", "metric": "fid"}
    table |= {"target": float(f"{TARGET:.4g}"), "factor": 2.0}
    (folder / "claim.toml").write_text(tomli_w.dumps({"claim": table}))
    rng, every = np.random.default_rng(0), STEPS // evaluations
    with open(folder / "curves.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["method", "seed", "step", "metric", "value", "images", "flops", "seconds"])
        for seed in range(seeds):
            shared = rng.normal(0, 0.0167)
            for method, speed in METHODS.items():
                noise = shared + rng.normal(0, 0.011) + rng.normal(0, 0.01, evaluations)
                steps = every * np.arange(1, evaluations + 1)
                values = metric(speed * steps) * np.exp(noise)
                costs = [[BATCH * int(s), FLOPS * int(s), SECONDS * int(s)] for s in steps]
                for step, value, cost in zip(steps, values, costs, strict=True):
                    rows.writerow([method, seed, int(step), "fid", f"{value:.6g}", *cost])
                write_run(folder / "runs" / f"{method}-{seed}", method, seed, steps, values, lines)


def write_run(path: Path, method: str, seed: int, steps: np.ndarray, values: np.ndarray, lines: int) -> None:
    environment = {"device": "cuda", "device_name": "one", "devices": 8, "started": 1_700_000_000_000}
    with RecordWriter(path) as record:
        record.write_spec(
            tomli_w.dumps({"seed": seed, "method": {"name": method}, "train": {"batch_size": BATCH}})
        )
        record.begin(environment, after_step=0)
        for step, value in zip(steps.tolist(), values.tolist(), strict=True):
            every = int(steps[0]) // lines
            record.append(*(_train(step - every * (lines - 1 - i)) for i in range(lines)))
            number = {"mean": value, "low": None, "high": None, "n": 10_000}
            record.append(
                {"kind": "eval", "step": step, "metrics": {"fid": number}, "protocol": "one", **_spent(step)}
            )
        record.finish({"images": BATCH * STEPS})


def _train(step: int) -> dict:
    losses = {"flow": 0.51234567, "align": -0.712345678}
    return {
        "kind": "train",
        "step": step,
        "loss": 0.5,
        "losses": losses,
        "grad_norm": 0.3,
        "learning_rate": 1e-4,
    } | _spent(step)


def _spent(step: int) -> dict:
    seconds = {name: SECONDS / 4 * step for name in ("student", "encoder", "optimizer", "ema")}
    return {"images": BATCH * step, "flops": int(FLOPS) * step, "seconds": {**seconds, "eval": 0.01 * step}}


if __name__ == "__main__":
    main()
