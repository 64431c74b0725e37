"""The overhead of the sweep engine: planning 500 runs, their status, and starting runs one after another.

    python -m benchmarks.sweep --out benchmarks/results/sweep.json

The overhead per run is the extra time of a study of short commands on one slot, compared with running the
same commands one by one. Each command writes the record of a finished run, so the coordinator does the same
work as for a real one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import sweeps.launch.runner
from harness.records.record import DONE, EVENTS, SPEC, Record
from sweeps.cli.display import PlainDisplay
from sweeps.launch.local import LocalLauncher
from sweeps.launch.runner import StudyRunner
from sweeps.plan.plan import PlannedRun, StudyPlan, make_plan
from sweeps.plan.status import read_status
from sweeps.plan.study import Study, load_study
from sweeps.plan.study_folder import write_plan

RUNS, RACED, ROUNDS, EVENTS_EACH = 500, 20, 5, 60
STUDY = """name = "many"
base = "digits"
[axes]
seed = [{seeds}]
"method.name" = ["flow", "repa", "self_flow", "sra", "layersync"]
"""
COMMAND = """import sys, shutil, pathlib
spec, out = map(pathlib.Path, sys.argv[1:])
run = out / spec.stem
run.mkdir()
shutil.copy(spec, run / "spec.toml")
(run / "done").write_text("{}")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    out: Path | None = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder))
    text = json.dumps(result, indent=1)
    print(text)
    if out is not None:
        out.write_text(f"{text}\n")


def measure(folder: Path) -> dict[str, object]:
    file = folder / "many.toml"
    file.write_text(STUDY.format(seeds=", ".join(map(str, range(RUNS // 5)))))
    begun = time.perf_counter()
    study = load_study(str(file))
    planned_runs = make_plan(study).runs
    planned = time.perf_counter() - begun
    assert len(planned_runs) == RUNS
    overheads = [overhead(planned_runs[k * RACED :][:RACED], folder / str(k)) for k in range(ROUNDS)]
    return {
        "machine": {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)},
        "plan_500_seconds": round(planned, 2),
        "status_500_seconds": round(status_seconds(study, planned_runs, folder / "done"), 2),
        "overhead_seconds_per_run": round(statistics.median(overheads), 3),
        "overhead_seconds_per_run_worst": round(max(overheads), 3),
    }


def status_seconds(study: Study, planned_runs: list[PlannedRun], directory: Path) -> float:
    """Return the median seconds of three readings of the status of a study of finished runs."""
    write_plan(study, StudyPlan(planned_runs, []), directory)
    seconds = {"student": 1.0, "optimizer": 0.5}
    for planned in planned_runs:
        run = directory / planned.id
        run.mkdir()
        events = [
            {
                "kind": "train",
                "step": k,
                "images": 8 * k,
                "loss": 1.0,
                "losses": {"flow": 1.0},
                "seconds": seconds,
            }
            for k in range(EVENTS_EACH)
        ]
        (run / EVENTS).write_text("".join(json.dumps(event) + "\n" for event in events))
        (run / SPEC).write_text(planned.spec.to_toml())
        (run / DONE).write_text("{}")
    found = [timed(lambda: read_status(directory)) for _ in range(3)]
    assert read_status(directory)["counts"] == {"done": RUNS}
    return statistics.median(found)


def overhead(planned_runs: list[PlannedRun], folder: Path) -> float:
    """Return the seconds per run that the coordinator adds to the commands that it starts."""
    alone, raced = folder / "alone", folder / "raced"
    for directory in (alone, raced):
        (directory / "specs").mkdir(parents=True)
    sweeps.launch.runner.run_command = lambda spec, directory: command(spec, directory)
    for planned in planned_runs:
        (alone / "specs" / f"{planned.id}.toml").write_text(planned.spec.to_toml())
    commands = [command(alone / "specs" / f"{planned.id}.toml", alone) for planned in planned_runs]
    bare = timed(lambda: [subprocess.run(each, check=True) for each in commands])
    launcher, done = LocalLauncher(1), []

    def race() -> None:
        with launcher, PlainDisplay(planned_runs, raced) as display:
            StudyRunner(planned_runs, raced, launcher, display, done.append).run()

    total = timed(race)
    assert {record.id for record in done} == {planned.id for planned in planned_runs}
    assert all(Record(raced / planned.id).status == "done" for planned in planned_runs)
    return (total - bare) / len(planned_runs)


def command(spec: Path, directory: Path) -> tuple[str, ...]:
    return (sys.executable, "-c", COMMAND, str(spec), str(directory))


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
