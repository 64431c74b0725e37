"""The SLURM launcher: what is to run becomes one job array in the order of the plan; SLURM schedules, requeues, limits.

submitit writes the batch script, submits it and reads its id. Its executor would also send the work as a pickle and read the
result from another: nothing here is unpickled, so the script calls `sweeps.launch.node` instead, which reads a table of command
lines (board.py). Nor is `sacct` needed, by which submitit follows its jobs: many clusters keep no accounting; `squeue` will do.

A coordinator that dies leaves its jobs in the queue. The next one finds them by the name of the study and follows them.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import UserError
from sweeps.launch.base import Event, Finished, Job, Resources, Started
from sweeps.launch.handoff import Board, add_line
from sweeps.launch.node import CANCEL

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
"""States that a job does not leave again; GONE is ours, for one that the queue has forgotten."""
SPARE_SECONDS = 90
"""How long before its time limit a run is told to write its checkpoint."""


class SlurmLauncher:
    """Runs jobs as SLURM array tasks, at most `at_a_time` together; asks the queue every `every` seconds.

    Left without a second `cancel`, it leaves what is in the queue to SLURM. Raises `UserError` where SLURM or submitit is not
    there, or SLURM refuses the jobs.
    """

    def __init__(
        self,
        board: Board,
        resources: Resources,
        *,
        at_a_time: int | None = None,
        options: Mapping[str, str] | None = None,
        every: float = 5.0,
    ) -> None:
        self._board, self._at_a_time, self._every = board, at_a_time, every
        self._executor = _executor(board.folder, resources, options or {})
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
        """Whether anything is in SLURM's hands, or waits to be."""
        return bool(self._sent or (self._waiting and self.stopped_by is None))

    def holds(self, name: str) -> bool:
        """Whether SLURM has a job of this name queued or running."""
        return self._states.get(name, "GONE") not in ENDED

    def submit(self, job: Job) -> None:
        """Hand a job over at the next `poll`, with all others as one array; one that SLURM holds already is followed."""
        if self.holds(job.name):
            self._sent[job.name] = job
        else:
            self._waiting.append(job)

    def poll(self, seconds: float = 0.1) -> list[Event]:
        """What happened since the last call. The queue is asked every few seconds, however often this is called."""
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
        return self._look()

    def cancel(self, number: int = signal.SIGINT) -> None:
        """Take back what waits and let what runs write its checkpoint; the second time, end it all."""
        self._cancelled = self.stopped_by is not None
        if self._cancelled:
            self._scancel()
        self.stopped_by = self.stopped_by or number
        self._due = 0.0

    def _submit(self, jobs: list[Job]) -> None:
        number = self._board.post(jobs)
        task = [sys.executable, "-m", "sweeps.launch.node", str(self._board.table(number).resolve())]
        _send(self._executor, f"{self._board.label}-{number}", task, len(jobs), self._at_a_time)
        self._sent |= {job.name: job for job in jobs}
        self._states |= {job.name: "PENDING" for job in jobs}
        self._due = 0.0

    def _look(self) -> list[Event]:
        """Compare the queue with the board. A job that is gone has two looks' time for its last word to arrive."""
        try:
            self._states = self._queue()
        except UserError:  # a controller that is being restarted forgets nothing
            return []
        begun, ended = self._board.seen()
        events: list[Event] = [Started(n) for n in self._sent if n in begun | ended and n not in self._begun]
        self._begun |= begun | ended
        for name, job in list(self._sent.items()):
            if name in ended:
                events.append(Finished(name, self._board.code(name)))
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
        """A job that left the queue without a last word: taken back by us, or ended by SLURM, which its log shall tell."""
        if self.stopped_by is not None:
            return Finished(job.name, 130)
        add_line(job.log, f"SLURM ended this job: {self._states.get(job.name, 'GONE')}")
        return Finished(job.name, 1)

    def _queue(self) -> dict[str, str]:
        """The state of every job of this study that SLURM remembers, by name."""
        posted = self._board.posted()
        if not posted:
            return {}
        names = ",".join(f"{self._board.label}-{number}" for number in posted)
        shown = _slurm(
            "squeue", "--noheader", "--array", "--states=all", f"--name={names}", "--format=%j|%K|%T"
        )
        rows = [line.split("|") for line in shown.splitlines()]
        found = {(int(name.rpartition("-")[2]), int(index)): state for name, index, state in rows}
        return {posted[n][index]: state for (n, index), state in sorted(found.items())}

    def _scancel(self, *flags: str) -> None:
        for number, names in self._board.posted().items():
            if any(map(self.holds, names)):
                label = f"--jobname={self._board.label}-{number}"
                subprocess.run(["scancel", "--quiet", label, *flags], capture_output=True)


def _executor(folder: Path, resources: Resources, options: Mapping[str, str]) -> Any:
    """submitit's executor with the settings that all submissions share."""
    try:
        import submitit
    except ImportError as error:
        raise UserError("--launcher slurm needs submitit: pip install 'flowrace[slurm]'") from error
    try:
        executor = submitit.SlurmExecutor(folder)
    except RuntimeError as error:
        raise UserError("no SLURM here: srun is not on the PATH; use --launcher local") from error
    executor.update_parameters(
        time=resources.minutes,  # None: the partition's own
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


def _send(executor: Any, name: str, task: list[str], count: int, at_a_time: int | None) -> None:
    """One array of `count` tasks, each of which learns its place from SLURM."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor.update_parameters(job_name=name, array_parallelism=at_a_time or count)
    executor.parameters["map_count"] = count
    try:
        executor._submit_command(f"exec {shlex.join(task)} $SLURM_ARRAY_TASK_ID --requeue")
    except (FailedJobError, FailedSubmissionError) as error:
        said = [
            line.removeprefix("sbatch:") for line in str(error).splitlines() if line.startswith("sbatch:")
        ]
        reason = said[0].strip().removeprefix("error: ") if said else str(error).strip().splitlines()[-1]
        raise UserError(f"SLURM refused the jobs: {reason}") from error


def _slurm(*command: str) -> str:
    """The output of a SLURM command; raises `UserError` with its last line where it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(f"SLURM does not answer: {command[0]}: {said[-1]}")
    return done.stdout
