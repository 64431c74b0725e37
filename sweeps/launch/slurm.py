"""The SLURM launcher: the runs become one job array in the order of the plan; SLURM schedules, requeues and
limits them.

submitit writes the batch script, submits it and reads its id. Its pickles are not used: the script calls
`sweeps.launch.retries`, which reads a table of command lines (handoff.py). submitit follows its jobs with
`sacct`, which needs accounting that many clusters do not have. This launcher needs only `squeue`.

A coordinator that dies leaves its jobs in the queue. The next one finds them by the name of the study and
follows them.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UserError
from sweeps.launch.base import Event, Finished, Job, Resources, Started
from sweeps.launch.handoff import Handoff, append_error
from sweeps.launch.retries import CANCEL

if TYPE_CHECKING:
    from submitit import SlurmExecutor

LONGEST_ARRAY = 1000
"""Jobs of one submission: SLURM's own MaxArraySize is 1001."""
ENDED = frozenset(
    [
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "REVOKED",
        "TIMEOUT",
        "GONE",
    ]
)
"""Final states of a job. GONE is not SLURM's: it is a job that the queue no longer lists."""
SPARE_SECONDS = 90
"""Seconds before its time limit at which a run is asked to write its checkpoint."""


class SlurmLauncher:
    """Runs jobs as SLURM array tasks, at most `at_a_time` together; reads the queue every `every` seconds.

    On exit the queued jobs stay with SLURM, unless `cancel` was called twice. Raises `UserError` if SLURM or
    submitit is missing, or SLURM rejects the jobs.
    """

    def __init__(
        self,
        handoff: Handoff,
        resources: Resources,
        *,
        at_a_time: int | None = None,
        options: Mapping[str, str] | None = None,
        every: float = 5.0,
    ) -> None:
        self._handoff, self._at_a_time, self._every = handoff, at_a_time, every
        self._executor = _executor(handoff.folder, resources, options or {})
        self._waiting: list[Job] = []
        self._sent: dict[str, Job] = {}
        self._begun: set[str] = set()
        self._missed: set[str] = set()
        self._states: dict[str, str] = {}
        self._due = 0.0
        self._cancelled = False
        self.stopped_by: int | None = None

    def __enter__(self) -> SlurmLauncher:
        self._states = self._queue()
        return self

    def __exit__(self, *_: object) -> None:
        if self._cancelled:
            self._scancel()

    @property
    def active(self) -> bool:
        """True while a job is in SLURM's queue or waits to be submitted."""
        return bool(self._sent or (self._waiting and self.stopped_by is None))

    def holds(self, name: str) -> bool:
        """Return whether SLURM has a job of this name queued or running."""
        return self._states.get(name, "GONE") not in ENDED

    def submit(self, job: Job) -> None:
        """Submit a job at the next `poll`, in one array with the others; follow one that SLURM already
        holds."""
        if self.holds(job.name):
            self._sent[job.name] = job
        else:
            self._waiting.append(job)

    def poll(self, seconds: float = 0.1) -> list[Event]:
        """Return the events since the last call.

        The queue is read every few seconds, however often this is called.
        """
        while self._waiting and self.stopped_by is None:
            self._submit(self._waiting[:LONGEST_ARRAY])
            del self._waiting[:LONGEST_ARRAY]
        if time.monotonic() < self._due:
            time.sleep(seconds)
            return []
        self._due = time.monotonic() + self._every
        if self.stopped_by is not None:
            self._scancel("--state=PENDING")
            self._scancel("--batch", f"--signal={CANCEL.name.removeprefix('SIG')}")
        return self._events()

    def cancel(self, number: int = signal.SIGINT) -> None:
        """Remove waiting jobs and let running ones write a checkpoint. A second call ends them all."""
        self._cancelled = self.stopped_by is not None
        if self._cancelled:
            self._scancel()
        self.stopped_by = self.stopped_by or number
        self._due = 0.0

    def _submit(self, jobs: list[Job]) -> None:
        number = self._handoff.write_submission(jobs)
        task = [sys.executable, "-m", "sweeps.launch.retries", str(self._handoff.table(number).resolve())]
        _send(self._executor, f"{self._handoff.label}-{number}", task, len(jobs), self._at_a_time)
        self._sent |= {job.name: job for job in jobs}
        self._states |= {job.name: "PENDING" for job in jobs}
        self._due = 0.0

    def _events(self) -> list[Event]:
        """Compare the queue with the handoff files.

        A job that left the queue has two reads' time to record its exit code.
        """
        try:
            self._states = self._queue()
        # A controller that is being restarted keeps its jobs.
        except UserError:
            return []
        begun, ended = self._handoff.outcomes()
        events: list[Event] = [Started(n) for n in self._sent if n in begun | ended and n not in self._begun]
        self._begun |= begun | ended
        for name, job in list(self._sent.items()):
            if name in ended:
                events.append(Finished(name, self._handoff.exit_code(name)))
                del self._sent[name]
            elif self.holds(name):
                self._missed.discard(name)
            elif name not in self._missed:
                self._missed.add(name)
            else:
                events.append(self._lost(job))
                del self._sent[name]
        return events

    def _lost(self, job: Job) -> Finished:
        """Finish a job that left the queue without an exit code: it was cancelled here, or SLURM ended it."""
        if self.stopped_by is not None:
            return Finished(job.name, 130)
        append_error(job.log, f"SLURM ended this job: {self._states.get(job.name, 'GONE')}")
        return Finished(job.name, 1)

    def _queue(self) -> dict[str, str]:
        """Return the state of every job of this study that SLURM lists, by name."""
        submissions = self._handoff.submissions()
        if not submissions:
            return {}
        names = ",".join(f"{self._handoff.label}-{number}" for number in submissions)
        shown = _slurm(
            "squeue", "--noheader", "--array", "--states=all", f"--name={names}", "--format=%j|%K|%T"
        )
        rows = [line.split("|") for line in shown.splitlines()]
        found = {(int(name.rpartition("-")[2]), int(index)): state for name, index, state in rows}
        return {submissions[n][index]: state for (n, index), state in sorted(found.items())}

    def _scancel(self, *flags: str) -> None:
        for number, names in self._handoff.submissions().items():
            if any(map(self.holds, names)):
                label = f"--jobname={self._handoff.label}-{number}"
                subprocess.run(["scancel", "--quiet", label, *flags], capture_output=True)


def _executor(folder: Path, resources: Resources, options: Mapping[str, str]) -> SlurmExecutor:
    """Return submitit's executor with the settings that all submissions share.

    Raises `UserError` for a value that would end its line of the script, whose next lines the shell runs.
    """
    for value in (str(folder.resolve()), resources.memory or "", *options, *map(str, options.values())):
        if "\n" in value or "\r" in value:
            raise UserError(f"{value!r} has a line end; a setting of SLURM is one line")
    try:
        import submitit
    except ImportError as error:
        raise UserError("--launcher slurm needs submitit: pip install 'flowrace[slurm]'") from error
    try:
        executor = submitit.SlurmExecutor(folder)
    except RuntimeError as error:
        raise UserError("no SLURM on this machine: srun is not on the PATH; use --launcher local") from error
    executor.update_parameters(
        # None leaves the partition's own limit.
        time=resources.minutes,
        nodes=1,
        ntasks_per_node=1,
        cpus_per_task=resources.cpus,
        gpus_per_node=resources.gpus or None,
        use_srun=False,
        stderr_to_stdout=True,
        wckey=None,
        additional_parameters={
            "requeue": True,
            "signal": f"B:USR2@{SPARE_SECONDS}",
            **({"mem": resources.memory} if resources.memory else {}),
            **options,
        },
    )
    return executor


def _send(executor: SlurmExecutor, name: str, task: list[str], count: int, at_a_time: int | None) -> None:
    """Submit one array of `count` tasks, each of which gets its index from SLURM."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor.update_parameters(job_name=name, array_parallelism=at_a_time or count)
    executor.parameters["map_count"] = count
    try:
        executor._submit_command(f"exec {shlex.join(task)} $SLURM_ARRAY_TASK_ID --requeue")
    except (FailedJobError, FailedSubmissionError) as error:
        lines = [
            line.removeprefix("sbatch:") for line in str(error).splitlines() if line.startswith("sbatch:")
        ]
        reason = lines[0].strip().removeprefix("error: ") if lines else str(error).strip().splitlines()[-1]
        raise UserError(f"SLURM rejected the jobs: {reason}") from error


def _slurm(*command: str) -> str:
    """Return the output of a SLURM command; raise `UserError` with its last line if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(f"SLURM does not answer: {command[0]}: {lines[-1]}")
    return done.stdout
