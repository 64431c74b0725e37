"""The preparation of a process: allocator, precision, device."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from harness.runtime.distributed import pick_device
from harness.runtime.environment import prepare

FAULTS = """
import resource, sys, torch
from harness.runtime.environment import prepare
if sys.argv[1] == "prepared":
    prepare(1)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
taken = []
for _ in range(8):
    before = faults()
    # Beyond 32 MB glibc maps memory, and unmaps it when it is freed; this is 48 MB.
    torch.ones(12_000_000)
    taken.append(faults() - before)
print(min(taken))
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no mallopt")
def test_freed_memory_is_reused_without_page_faults() -> None:
    def faults(how: str) -> int:
        command = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults("prepared") < 100
    # Huge pages can make the number small.
    assert faults("unprepared") > 10


def test_prepare_disables_tf32_and_pick_device_makes_the_gpu_current(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The calls to torch are recorded, so that no GPU is needed."""
    prepare(torch.get_num_threads())
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    current: list[torch.device] = []
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert pick_device("cuda:1") == torch.device("cuda:1") == current[0]
    assert pick_device("cpu") == torch.device("cpu") and len(current) == 1
