"""Bytes by the account of PyTorch's allocator, and by that of Python."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def allocated(step: Callable[[], object]) -> int:
    """The most bytes that the CPU allocator handed out during a call, beyond what it had: its own events."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    live = peak = 0
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def traced(call: Callable[[int], object], tries: int = 2) -> int:
    """Return the peak of Python's memory during a call, the least of some numbered tries.

    A table of the interpreter, for example of interned strings, grows by megabytes in one call of a test
    session.
    """
    peaks = []
    for number in range(tries):
        tracemalloc.start()
        try:
            call(number)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    return min(peaks)
