"""The forked processes of tests: none waits for threads that only its parent has."""

from __future__ import annotations

import torch

from harness.runtime.environment import prepare
from tests.support.forked import in_child


def test_child_of_a_process_with_two_threads_computes() -> None:
    def work() -> None:
        prepare(0)
        torch.exp(torch.arange(1_000_000, dtype=torch.float32))

    torch.set_num_threads(2)
    torch.exp(torch.arange(1_000_000, dtype=torch.float32))
    assert in_child(work, kill_after=30) == 0
