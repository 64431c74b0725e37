"""Real samples of a study, measured once before its workers start.

Otherwise the first worker would measure them while the others hold their slots and wait.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO

from harness.config.spec import RunSpec
from harness.files.cache import cache_dir
from harness.files.files import write_atomic
from harness.records.record import Record
from harness.records.study_folder import StudyFolder
from sweeps.launch.base import Launcher
from sweeps.plan.plan import PlannedRun

POLL_SECONDS = 0.1


def prepare_real_samples(
    runs: Sequence[PlannedRun], directory: Path, launcher: Launcher, note: Callable[[str], None]
) -> None:
    """Measure in a helper process what at least two unfinished runs need and the cache lacks.

    Lines of the process go to `note`. It ends with the launcher. If it fails, the runs report the reason.
    """
    needed = {key: run for key, run in _shared(runs, directory).items() if not _mark(key).exists()}
    if not needed:
        return
    note("measuring the real samples before the runs start")
    folder = StudyFolder(directory)
    for key, run in needed.items():
        file = folder.spec_file(run.id)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, run.spec.to_toml().encode())
        if launcher.stopped_by is None and _run(prepare_command(file), run.spec, launcher, note) == 0:
            write_atomic(_mark(key), b"")


def prepare_command(spec: Path) -> tuple[str, ...]:
    """Return the command line of the helper process."""
    return (sys.executable, "-m", "harness.cli.main", "data", "prepare", str(spec))


def _shared(runs: Iterable[PlannedRun], directory: Path) -> dict[str, PlannedRun]:
    """Return one run for each set of real samples and networks that at least two unfinished runs share."""
    groups: dict[str, list[PlannedRun]] = {}
    for run in runs:
        if _is_long(run.spec) and Record(directory / run.id).status not in ("done", "running"):
            groups.setdefault(_key(run.spec), []).append(run)
    return {key: group[0] for key, group in groups.items() if len(group) > 1}


def _is_long(spec: RunSpec) -> bool:
    """Return whether the pass may take longer than the start of a process: not for small generated data."""
    networks = {name.partition(":")[2] for name in spec.eval.metrics}
    return bool(spec.data.root) or not networks <= {"local"}


def _key(spec: RunSpec) -> str:
    """Return a hash of what real samples, networks and the bits of features depend on."""
    data = spec.data.model_dump(mode="json", exclude={"workers", "flip", "posterior"})
    fields = {"metrics", "samples", "weights", "reference"}
    measured = spec.eval.model_dump(mode="json", include=fields)
    runtime = spec.runtime.model_dump(mode="json", include={"threads", "device"})
    return hashlib.sha256(json.dumps([data, measured, runtime], sort_keys=True).encode()).hexdigest()[:24]


def _mark(key: str) -> Path:
    """Return the file that marks a finished preparation. It saves time only: each run checks the cache."""
    return cache_dir("features") / f"prepared-{key}"


def _run(command: Sequence[str], spec: RunSpec, launcher: Launcher, note: Callable[[str], None]) -> int:
    """Run the helper process to its end, or to the launcher's; return its exit code."""
    threads = {"OMP_NUM_THREADS": str(spec.runtime.threads)} if spec.runtime.threads else {}
    # In a separate session, so that Ctrl-C reaches this process only, which passes it on.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | threads,
        start_new_session=True,
    )
    assert process.stdout is not None
    reader = threading.Thread(target=_forward, args=(process.stdout, note), daemon=True)
    reader.start()
    try:
        while True:
            try:
                code = process.wait(POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                if launcher.stopped_by is not None:
                    process.send_signal(signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
    reader.join()
    return code


def _forward(lines: IO[str], note: Callable[[str], None]) -> None:
    with lines:
        for line in lines:
            note(line.rstrip())
