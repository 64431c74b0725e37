"""The training loop, the same for every objective, readable from top to bottom.

One step: global sample indices -> samples -> draws -> encoder features -> method.loss -> backward -> optimizer -> EMA ->
a line in the record. To continue a run that was stopped or killed, run the same command again.
"""

from __future__ import annotations

import math
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from harness import run as runs
from harness.backbone.student import Student
from harness.batch import Batch, Draw
from harness.checkpoint import checkpoints, path_of
from harness.data.base import open_dataset, split
from harness.data.feed import Shares
from harness.distributed import World, join
from harness.environment import describe, prepare
from harness.errors import RunStopped, UserError
from harness.evaluate import Evaluator
from harness.record import DONE, Record, RecordWriter
from harness.run import Run
from harness.spec import EmaSpec, RunSpec, TrainSpec


class Interrupted(RunStopped):
    """Stopped by a signal, behind a checkpoint."""

    exit_code = 130


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


def train(spec: RunSpec, out: Path, progress: Progress) -> Path:
    """Train a spec to its last step in `out/<run id>` and return that folder; a finished run returns at once.

    Raises `UserError` for what a user can mend, `RunStopped` for a loss that is not finite, `Interrupted` for a signal.
    """
    path = out / spec.id
    _check_batch(spec)
    prepare(_threads(spec, Record(path), progress))
    with join(spec.runtime.device) as world:
        if (path / DONE).exists():
            progress.note(f"run {spec.id} is finished already")
            return path
        if not world.main:
            _train(spec, path, world, None, progress)
            return path
        with RecordWriter(path) as record:
            try:
                record.write_spec(spec.to_toml())
                _train(spec, path, world, record, progress)
            except RunStopped as reason:
                if not isinstance(reason, Interrupted):
                    record.fail({"reason": str(reason)})
                raise
            except OSError as error:
                raise UserError(
                    f"cannot write to {path}: {error.strerror}; the same command continues"
                ) from error
    return path


def _train(spec: RunSpec, path: Path, world: World, record: RecordWriter | None, progress: Progress) -> None:
    """Build, restore, and go on to the last step."""
    progress.note(f"run {spec.id}: {spec.method.name}, seed {spec.seed}")
    dataset = open_dataset(spec.data)
    _check_same_data(Record(path), dataset.fingerprint)
    sides = split(dataset, spec.data.held_out)
    run = runs.build(spec, dataset, sides, world.device)
    runs.restore(run, path / "checkpoints")
    evaluator = None
    if record is not None:
        evaluator = Evaluator(spec.eval, dataset, sides.train, world.device)
        if run.encoder is not None and run.encoder.accuracy is not None:
            progress.note(f"encoder {run.encoder.name}: held-out accuracy {100 * run.encoder.accuracy:.1f} %")
        about = {"data_fingerprint": dataset.fingerprint, "train_samples": len(sides.train)}
        if run.encoder is not None:
            about["encoder"] = {
                name: getattr(run.encoder, name, None) for name in ("name", "params", "sha256", "accuracy")
            }
        record.begin(describe(world.device, world.size) | about, after_step=run.step)
        _complete(record, Record(path), run)
    progress.begin(run.step, spec.train.steps)
    with _stop_signals() as stop:
        _loop(run, path, world, Journal(run, world, record, progress), evaluator, stop)


def _loop(
    run: Run, path: Path, world: World, journal: Journal, evaluator: Evaluator | None, stop: list[int]
) -> None:
    train, begun = run.spec.train, run.step
    objective = world.wrap(Objective(run), changing=run.spec.method.schedule.until is not None)
    shares = Shares(
        range(begun + 1, train.steps + 1), train.batch_size, train.accumulate, world.rank, world.size
    )
    batches = run.feed.batches(shares, run.spec.data.workers)
    while run.step < train.steps:
        # A process's first step compiles and allocates: it is booked as warm-up, whole.
        with run.meter.single("warmup") if run.step == begun else nullcontext():
            taken = _step(run, objective, batches, world)
        run.step = taken.step
        last = run.step == train.steps
        evaluates = last or run.step % run.spec.eval.every == 0
        saves = last or run.step % train.checkpoint_every == 0
        stopping = world.any(bool(stop))
        journal.add(taken, write=last or evaluates or saves or stopping)
        if evaluates and evaluator is not None:
            journal.evaluation(evaluator)
        if saves or stopping:
            journal.checkpoint(path / "checkpoints", scheduled=saves)
            world.wait()
        if stopping and not last:
            raise Interrupted(f"stopped at step {run.step} of {train.steps}; the same command continues")
    journal.finish()


def _step(run: Run, objective: nn.Module, batches: Iterator[Batch], world: World) -> Taken:
    train, phase, step = run.spec.train, run.meter.phase, run.step + 1
    losses: dict[str, Tensor] = {}
    for micro in range(train.accumulate):
        with phase("data"):
            batch = next(batches)
            draw = run.method.draw(run.streams, batch).to(world.device)
            batch = replace(batch.to(world.device), step=step)
        with torch.autocast(world.device.type, torch.bfloat16, enabled=train.precision == "bfloat16"):
            if run.encoder is not None and run.spec.method.weight(step):
                with phase("encoder"):
                    batch = replace(batch, features=run.encoder.features(batch.x0))
            with phase("student"), world.accumulating(objective, last=micro == train.accumulate - 1):
                total, parts = objective(batch, draw)
        with phase("student"), world.accumulating(objective, last=micro == train.accumulate - 1):
            (total / train.accumulate).backward()
        for name, value in {"loss": total, **parts}.items():
            losses[name] = losses.get(name, 0) + value.detach() / train.accumulate
    with phase("optimizer"):
        norm = nn.utils.clip_grad_norm_(list(run.learned.values()), train.clip)
        learning_rate = set_learning_rate(run.optimizer, train, step)
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
    with phase("ema"):
        runs.update_ema(run.ema, run.model, ema_decay(run.spec.ema, step))
        run.method.after_step(run.student, step)
    return Taken(step, losses, norm, learning_rate)


class Objective(nn.Module):
    """Student and method as one module, so that one wrapper sees every gradient."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.model, self.method = run.model, run.method
        self._student: Student = run.student

    def forward(self, batch: Batch, draw: Draw) -> tuple[Tensor, dict[str, Tensor]]:
        return tuple(self.method.loss(self._student, batch, draw))


class Journal:
    """What the loop tells the record and the user; the only place that waits for the device."""

    def __init__(self, run: Run, world: World, record: RecordWriter | None, progress: Progress) -> None:
        self.run, self.world, self.record, self.progress = run, world, record, progress
        self._pending: list[Taken] = []

    def add(self, taken: Taken, *, write: bool) -> None:
        """Take in a step; every `log_every` steps, and when told, check all losses and write the lines that are due."""
        self._pending.append(taken)
        every = self.run.spec.train.log_every
        if not write and taken.step % every:
            return
        names = list(taken.losses)
        rows = torch.stack([torch.stack([*t.losses.values(), t.grad_norm.detach()]) for t in self._pending])
        rows = self.world.mean(rows.float()).tolist()
        seconds = self.run.meter.settle()
        steps = self.run.spec.train.steps
        for past, row in zip(self._pending, rows, strict=True):
            if not all(map(math.isfinite, row)):
                raise self._not_finite(past.step)
            if past.step % every == 0 or past.step == steps:
                self._train_event(past, dict(zip(names, row, strict=False)), row[-1], seconds)
        self._pending.clear()

    def evaluation(self, evaluator: Evaluator) -> None:
        with self.run.meter.phase("eval"):
            result = evaluator(self.run.ema)
        result.save_grid(self.record.path / "samples" / f"step-{self.run.step:08d}.png")
        values = {name: value._asdict() for name, value in result.metrics.items()}
        self._event("eval", self.run.step, metrics=values, protocol=result.protocol)
        self.progress.evaluated(self.run.step, values)

    def checkpoint(self, folder: Path, *, scheduled: bool) -> None:
        """Save; what was written so far is on the disk before the checkpoint claims it. A checkpoint off the schedule
        (a stop) leaves no line, so that the record is the one of an unbroken run."""
        if self.record is None:
            return
        self.record.sync()
        with self.run.meter.phase("checkpoint"):
            path = runs.save(self.run, folder)
        if scheduled:
            self.record.append(_checkpoint_event(self.run, path.name))

    def finish(self) -> None:
        if self.record is not None:
            usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            cuda = torch.cuda.max_memory_allocated() if self.world.device.type == "cuda" else None
            memory = {"peak_memory_bytes": usage, "peak_device_memory_bytes": cuda}
            self.record.finish({**self._totals(self.run.step), **memory})

    def _train_event(
        self, taken: Taken, losses: dict[str, float], norm: float, seconds: dict[str, float]
    ) -> None:
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
        self.record.append({"kind": kind, "step": step, "images": totals.pop("images"), **content, **totals})

    def _totals(self, step: int) -> dict[str, Any]:
        images = step * self.run.spec.train.batch_size
        return {
            "images": images,
            "flops": self.run.cost.until(step),
            "seconds": _rounded(self.run.meter.settle()),
        }

    def _not_finite(self, step: int) -> RunStopped:
        saved = checkpoints(self.record.path / "checkpoints") if self.record is not None else []
        last = f"the last good checkpoint is {saved[-1].name}" if saved else "there is no checkpoint yet"
        return RunStopped(
            f"the loss is not finite at step {step}; {last}. Nothing behind it was saved. "
            "Try a lower train.learning_rate or train.precision = 'float32'"
        )


def set_learning_rate(optimizer: torch.optim.Optimizer, train: TrainSpec, step: int) -> float:
    """Constant after a linear warm-up."""
    rate = train.learning_rate * min(1.0, step / train.warmup_steps if train.warmup_steps else 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def ema_decay(ema: EmaSpec, step: int) -> float:
    """The decay at a step (1-based); with warm-up min(decay, (1 + step) / (10 + step))."""
    return min(ema.decay, (1 + step) / (10 + step)) if ema.warmup else ema.decay


def _complete(record: RecordWriter, found: Record, run: Run) -> None:
    """Add the line of the checkpoint that was restored, where the process died between the file and its line."""
    scheduled = run.step > 0 and (
        run.step % run.spec.train.checkpoint_every == 0 or run.step == run.spec.train.steps
    )
    if scheduled and not any(event["step"] == run.step for event in found.of("checkpoint")):
        record.append(_checkpoint_event(run, path_of(Path(), run.step).name))


def _checkpoint_event(run: Run, file: str) -> dict[str, Any]:
    return {
        "kind": "checkpoint",
        "step": run.step,
        "images": run.step * run.spec.train.batch_size,
        "file": file,
    }


def _check_batch(spec: RunSpec) -> None:
    parts = int(os.environ.get("WORLD_SIZE", "1")) * spec.train.accumulate
    if spec.train.batch_size % parts:
        raise UserError(
            f"train.batch_size = {spec.train.batch_size} cannot be divided into {parts} equal parts "
            "(processes x train.accumulate); choose a multiple"
        )


def _check_same_data(record: Record, fingerprint: str) -> None:
    begun = next((start["data_fingerprint"] for start in record.environment), fingerprint)
    if begun != fingerprint:
        raise UserError(
            f"the data have changed since {record.path} began (fingerprint {begun}, now {fingerprint}); "
            "give it the original data, or use another --out"
        )


def _threads(spec: RunSpec, record: Record, progress: Progress) -> int:
    """A run keeps the thread count it began with: bits depend on it."""
    begun = next((start["threads"] for start in record.environment), None)
    if begun is not None and spec.runtime.threads not in (0, begun):
        progress.note(
            f"the run began with {begun} threads and keeps them, so that its numbers stay the same bit for bit"
        )
    return begun or spec.runtime.threads


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in sorted(seconds.items())}


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """The first SIGINT or SIGTERM asks the loop to stop behind its step; the second one acts at once."""
    asked: list[int] = []

    def ask(number: int, _: Any) -> None:
        asked.append(number)
        signal.signal(number, previous[number])

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
