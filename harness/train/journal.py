"""What the loop tells the record and the user: the only place of a run that waits for the device."""

from __future__ import annotations

import math
import resource
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from harness.errors import RunStopped
from harness.evaluation.evaluator import Evaluator
from harness.records.checkpoint import checkpoints, path_of, prune, scheduled
from harness.records.record import Record, RecordWriter
from harness.runtime.distributed import World
from harness.train import state as runs
from harness.train.state import Run


class Progress(Protocol):
    """Told what happens; shows it, or not."""

    def note(self, message: str) -> None: ...
    def begin(self, step: int, steps: int) -> None: ...
    def step(self, step: int, loss: float) -> None: ...
    def evaluated(self, step: int, metrics: dict[str, Any]) -> None: ...


class Taken(NamedTuple):
    """What one step leaves for the record; numbers stay on the device until they are written."""

    step: int
    losses: dict[str, Tensor]
    grad_norm: Tensor
    learning_rate: float


class Journal:
    """What the loop tells the record and the user; the only place that waits for the device."""

    def __init__(self, run: Run, world: World, record: RecordWriter | None, progress: Progress) -> None:
        self.run, self.world, self.record, self.progress = run, world, record, progress
        self._pending: list[Taken] = []
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._saving: Future[list[dict[str, Any]]] | None = None
        self._held: list[dict[str, Any]] = []

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.settle()
        finally:
            self._writer.shutdown()

    def settle(self) -> None:
        """Wait for the checkpoint that is being written; raises what kept it from the disk."""
        if self._saving is not None:
            saving, self._saving = self._saving, None
            self.record.append(*saving.result(), *self._held)
            self._held.clear()

    def add(self, taken: Taken, *, write: bool) -> None:
        """Take in a step; every `log_every` steps, and when told, check all losses and write the lines that are due."""
        self._pending.append(taken)
        every = self.run.spec.train.log_every
        if not write and taken.step % every:
            return
        names = list(taken.losses)
        rows = torch.stack([torch.stack([*t.losses.values(), t.grad_norm.detach()]) for t in self._pending])
        rows = self.world.mean(rows.float()).tolist()
        self.run.meter.settle()  # in every process, or the spans of one that writes no line pile up
        steps = self.run.spec.train.steps
        for past, row in zip(self._pending, rows, strict=True):
            if not all(map(math.isfinite, row)):
                raise self._not_finite(past.step)
            if past.step % every == 0 or past.step == steps:
                self._train_event(past, dict(zip(names, row, strict=False)), row[-1])
        self._pending.clear()

    def evaluation(self, evaluator: Evaluator) -> None:
        with self.run.meter.phase("eval"):
            result = evaluator(self.run.ema)
            self.world.wait()  # for the main process, which measures: its time too is the evaluation's
        if result is None:
            return
        result.save_grid(self.record.path / "samples" / f"step-{self.run.step:08d}.png")
        values = result.rows
        failed = {"errors": result.errors} if result.errors else {}
        self._event("eval", self.run.step, metrics=values, protocol=result.protocol, **failed)
        self.progress.evaluated(self.run.step, values)
        for name, reason in result.errors.items():
            self.progress.note(f"step {self.run.step}: {name} could not be computed: {reason}")

    def checkpoint(self, folder: Path, *, scheduled: bool) -> None:
        """Copy the state, and save it on a thread; what was written so far is on the disk before the checkpoint claims it.

        Its line, and all behind it, wait until it is whole. A checkpoint off the schedule (a stop) leaves no line, so that
        the record is the one of an unbroken run.
        """
        with self.run.meter.phase("checkpoint"):
            self.settle()
            save = runs.saver(self.run, folder, writes=self.record is not None)
        if self.record is None:
            return
        step, seconds = self.run.step, self._totals(self.run.step)["seconds"]
        lines = [_checkpoint_event(self.run, path_of(folder, step).name)] if scheduled else []

        def write() -> list[dict[str, Any]]:
            self.record.sync()
            save()
            self.record.write_clock(step, seconds)
            return lines

        self._saving = self._writer.submit(write)

    def finish(self) -> None:
        self.settle()
        if self.record is not None:
            usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            peaks = self.run.meter.peaks
            memory = {
                "peak_memory_bytes": usage,
                "peak_device_memory_bytes": max(peaks.values(), default=None),
            }
            if peaks:
                memory["peak_device_memory_bytes_by_phase"] = peaks
            self.record.finish({**self._totals(self.run.step), **memory})

    def _train_event(self, taken: Taken, losses: dict[str, float], norm: float) -> None:
        if self.record is None:
            return
        numbers = {
            "loss": losses.pop("loss"),
            "losses": losses,
            "grad_norm": norm,
            "learning_rate": taken.learning_rate,
        }
        self._event("train", taken.step, **numbers)
        self.progress.step(taken.step, numbers["loss"])

    def _event(self, kind: str, step: int, **content: Any) -> None:
        totals = self._totals(step)
        self._append({"kind": kind, "step": step, "images": totals.pop("images"), **content, **totals})

    def _append(self, event: dict[str, Any]) -> None:
        if self._saving is not None and self._saving.done():
            self.settle()
        if self._saving is None:
            self.record.append(event)
        else:
            self._held.append(event)

    def _totals(self, step: int) -> dict[str, Any]:
        images = step * self.run.spec.train.batch_size
        return {
            "images": images,
            "flops": self.run.cost.until(step),
            "seconds": _rounded(self.run.meter.settle()),
        }

    def _not_finite(self, step: int) -> RunStopped:
        self.settle()
        saved = checkpoints(self.record.path / "checkpoints") if self.record is not None else []
        last = f"the last good checkpoint is {saved[-1].name}" if saved else "there is no checkpoint yet"
        return RunStopped(
            f"the loss is not finite at step {step}; {last}. Nothing behind it was saved. "
            "Try a lower train.learning_rate or train.precision = 'float32'"
        )


def complete(record: RecordWriter, found: Record, run: Run) -> None:
    """Make up for what the process left undone that died behind the file of the checkpoint that was restored: its line, and
    the older files that it replaces."""
    due = run.step > 0 and scheduled(run.step, run.spec.train)
    if due and not any(event["step"] == run.step for event in found.of("checkpoint")):
        record.append(_checkpoint_event(run, path_of(Path(), run.step).name))
    prune(found.path / "checkpoints", run.spec.train)


def _checkpoint_event(run: Run, file: str) -> dict[str, Any]:
    return {
        "kind": "checkpoint",
        "step": run.step,
        "images": run.step * run.spec.train.batch_size,
        "file": file,
    }


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in sorted(seconds.items())}
