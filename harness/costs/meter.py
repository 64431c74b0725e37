"""Phase meter: seconds or FLOPs, and peak memory, by phase."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Meter:
    """Books a growing quantity (seconds, FLOPs) by phase. A nested phase's share is not booked on its parent.

    `stamp` reads the quantity, `between` returns the amount between two stamps. Amounts are added up in
    `settle`, so that stamps may be GPU events whose times are known later. `high_water` returns the peak
    bytes since its last call.
    """

    def __init__(
        self,
        stamp: Callable[[], Any],
        between: Callable[[Any, Any], float],
        high_water: Callable[[], int] | None = None,
    ) -> None:
        self._stamp, self._between, self._high_water = stamp, between, high_water
        self.peaks: dict[str, int] = {}
        """Peak bytes on the device by phase; empty if the device does not count them."""
        self._totals: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._spans: list[tuple[str, Any, Any]] = []
        self._since: Any = None
        self._instead: str | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Book everything inside on a phase."""
        self._book()
        self._open.append(self._instead or name)
        try:
            yield
        finally:
            self._book()
            self._open.pop()

    @contextmanager
    def single(self, name: str) -> Iterator[None]:
        """Book everything inside on one phase, whatever phases it names.

        A process's first step compiles and allocates, and is booked as warm-up.
        """
        self._instead = name
        try:
            yield
        finally:
            self._instead = None

    def settle(self) -> dict[str, float]:
        """Return the totals by phase so far."""
        for name, start, end in self._spans:
            self._totals[name] += self._between(start, end)
        self._spans.clear()
        return dict(self._totals)

    def restore(self, totals: dict[str, float]) -> None:
        """Take over the totals of a checkpoint."""
        self._totals.update(totals)

    def _book(self) -> None:
        now = self._stamp()
        if self._open:
            self._spans.append((self._open[-1], self._since, now))
            if self._high_water is not None:
                self.peaks[self._open[-1]] = max(self.peaks.get(self._open[-1], 0), self._high_water())
        self._since = now


def clock(device: torch.device) -> Meter:
    """Return a meter of seconds. On CUDA, it reads the GPU's timeline, without synchronising."""
    if device.type != "cuda":
        return Meter(time.perf_counter, lambda start, end: end - start)

    def stamp() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        return start.elapsed_time(end) / 1000

    def high_water() -> int:
        # The allocator counts on the host, so this does not synchronise. `max_memory_allocated` would also
        # sort some hundred other counts by name, at both ends of every phase.
        counts = torch.cuda.memory.memory_stats_as_nested_dict(device)
        peak = counts["allocated_bytes"]["all"]["peak"]
        torch.cuda.reset_peak_memory_stats(device)
        return peak

    return Meter(stamp, between, high_water)
