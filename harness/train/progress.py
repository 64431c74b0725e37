"""Progress displays of a training run: a live bar in a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import time
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn
from rich.text import Text

from harness.files.progress import make_bar
from harness.records.evaluations import without_parts


class Quiet:
    """Print notes only."""

    def note(self, message: str) -> None:
        click.echo(message)

    def begin(self, step: int, steps: int) -> None:
        pass

    def step(self, step: int, loss: float) -> None:
        pass

    # Any: a metric is a row of an `eval` event, with its mean, interval and n.
    def evaluated(self, step: int, metrics: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


class Silent(Quiet):
    """Print nothing."""

    def note(self, message: str) -> None:
        pass


class Lines(Quiet):
    """Print a line every few seconds, for logs."""

    def __init__(self, every_seconds: float = 10.0) -> None:
        self._every, self._last = every_seconds, (0.0, 0)
        self._steps = 0

    def begin(self, step: int, steps: int) -> None:
        self._steps, self._last = steps, (time.monotonic(), step)
        self.note(f"step {step} of {steps}")

    def step(self, step: int, loss: float) -> None:
        now = time.monotonic()
        since, at = self._last
        if now - since >= self._every or step == self._steps:
            rate = (step - at) / max(now - since, 1e-9)
            self.note(f"step {step} of {self._steps}  loss {loss:.4f}  {rate:.1f} steps/s")
            self._last = (now, step)

    def evaluated(self, step: int, metrics: dict[str, Any]) -> None:
        self.note(f"step {step}  {_format_metrics(metrics)}")


class Live(Quiet):
    """Show a progress bar with step, loss, speed and time left."""

    def __init__(self) -> None:
        self._bar = make_bar(
            "step",
            MofNCompleteColumn(),
            BarColumn(),
            "loss {task.fields[loss]:.4f}",
            "{task.fields[rate]:.1f} steps/s",
            transient=False,
        )

    def note(self, message: str) -> None:
        self._bar.console.print(Text(message))

    def begin(self, step: int, steps: int) -> None:
        self._begun = (time.monotonic(), step)
        self._task = self._bar.add_task("", total=steps, completed=step, loss=float("nan"), rate=0.0)
        self._bar.start()

    def step(self, step: int, loss: float) -> None:
        since, at = self._begun
        rate = (step - at) / max(time.monotonic() - since, 1e-9)
        self._bar.update(self._task, completed=step, loss=loss, rate=rate)

    def evaluated(self, step: int, metrics: dict[str, Any]) -> None:
        self.note(f"step {step}  {_format_metrics(metrics)}")

    def close(self) -> None:
        self._bar.stop()


def _format_metrics(metrics: dict[str, Any]) -> str:
    return "  ".join(f"{name} {value['mean']:.3f}" for name, value in without_parts(metrics).items())
