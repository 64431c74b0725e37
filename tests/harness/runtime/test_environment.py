"""What a process is prepared to be."""

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
    torch.ones(12_000_000)  # 48 MB: glibc maps what is larger than 32 MB, and unmaps it when it is freed
    taken.append(faults() - before)
print(min(taken))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no mallopt")
def test_memory_that_was_freed_is_taken_again_without_a_page_fault() -> None:
    def faults(how: str) -> int:
        command = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults("prepared") < 100
    assert faults("as it comes") > 10  # huge pages may make it few


def test_float32_is_float32_and_a_gpu_that_is_named_is_the_current_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a GPU: what would be asked of it. Events and streams are those of the current device."""
    prepare(torch.get_num_threads())
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    current: list[torch.device] = []
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert pick_device("cuda:1") == torch.device("cuda:1") == current[0]
    assert pick_device("cpu") == torch.device("cpu") and len(current) == 1
